package l7

import (
	"fmt"
	"io"
	"strings"
)

// Dump writes c as text, one line per item, for tests and for people. The
// text does not show everything: equal texts do not mean equal values.
func (c Config) Dump(w io.Writer) error {
	var b strings.Builder
	for _, l := range c.Listeners {
		fmt.Fprintf(&b, "listener %s %s %s\n", l.Name, l.Protocol, l.Address)
		for _, name := range l.Certificates {
			fmt.Fprintf(&b, "  certificate %s: %s\n", anyHost(name.Host), name.Certificate)
		}
		if l.DefaultCertificate != "" {
			fmt.Fprintf(&b, "  certificate default: %s\n", l.DefaultCertificate)
		}
		for _, host := range l.Hosts {
			fmt.Fprintf(&b, "  host %s\n", anyHost(host.Pattern))
			for _, r := range host.Routes {
				fmt.Fprintf(&b, "    %s -> %s\n", r.Match, r.target())
			}
			if host.Default != nil {
				fmt.Fprintf(&b, "    default -> %s\n", host.Default.target())
			}
		}
	}
	for _, cl := range c.Clusters {
		fmt.Fprintf(&b, "cluster %s %s %s\n", cl.Name, cl.Scheme, strings.Join(cl.Endpoints, " "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String returns the match as Dump writes it.
func (m Match) String() string {
	text := fmt.Sprintf("%s %s", m.PathKind, m.Path)
	if m.Method != "" {
		text += " " + m.Method
	}
	for _, f := range m.Headers {
		text += fmt.Sprintf(" %s:%q", f.Name, f.Value)
	}
	for _, f := range m.Query {
		text += fmt.Sprintf(" ?%s=%q", f.Name, f.Value)
	}
	return text
}

func (r *Route) target() string {
	if to := r.Redirect; to != nil {
		return fmt.Sprintf("%d %s%s [%s]", to.Status, to.Scheme, to.Host, r.Name)
	}
	var backends []string
	for _, b := range r.Backends {
		backends = append(backends, fmt.Sprintf("%s*%d", b.Cluster, b.Weight))
	}
	if len(backends) == 0 {
		backends = []string{"503"}
	}
	return strings.Join(backends, " ") + " [" + r.Name + "]"
}

func anyHost(pattern string) string {
	if pattern == "" {
		return "*"
	}
	return pattern
}
