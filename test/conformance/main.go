// Command conformance runs upstream Kubernetes' own conformance tests, as
// released, against a Weft cluster, and says in a table what passed.
//
//	weft up
//	conformance -bin bin -focus 'Deployment|ReplicaSet'
//
// The tests come from k8s.io/kubernetes/test/e2e, in the version that go.mod
// pins. The images they use are built here (images.go), under the names the
// tests ask for, and loaded into every node; nothing is pulled. skip.txt lists
// what is left out, each with its reason.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed skip.txt
var skipFile string

type options struct {
	bin, name, kubeconfig, focus, report string
	parallel                             int
	all, keepImages                      bool
	timeout                              time.Duration
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("conformance: ")
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of weft, image, e2e.test, ginkgo, kubectl and the programs of the images")
	flag.StringVar(&o.name, "name", "default", "name of the local cluster")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster (default: what weft kubeconfig prints)")
	flag.StringVar(&o.focus, "focus", "", "regular expression for the names of the specs to run (default: all)")
	flag.StringVar(&o.report, "report", "", "directory for junit.xml and the log (default BIN/conformance)")
	flag.IntVar(&o.parallel, "parallel", 4, "how many specs to run at once; [Serial] ones always run alone")
	flag.BoolVar(&o.all, "all", false, "include specs that are not [Conformance]")
	flag.BoolVar(&o.keepImages, "no-images", false, "do not build and load images; they are there")
	flag.DurationVar(&o.timeout, "timeout", 4*time.Hour, "longest time for the whole run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	passed, err := run(ctx, o)
	if err != nil {
		log.Fatal(err)
	}
	if !passed {
		os.Exit(1)
	}
}

// run reports whether every spec passed; an error means that none could run.
func run(ctx context.Context, o options) (bool, error) {
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return false, err
	}
	if o.report == "" {
		o.report = filepath.Join(o.bin, "conformance")
	}
	if err := os.MkdirAll(o.report, 0o755); err != nil {
		return false, err
	}
	skip, err := parseSkips(skipFile)
	if err != nil {
		return false, err
	}
	if o.kubeconfig == "" {
		if o.kubeconfig, err = o.fetchKubeconfig(ctx); err != nil {
			return false, err
		}
	}
	if !o.keepImages {
		archives, err := o.provideImages(ctx)
		if err != nil {
			return false, err
		}
		stop, err := o.serveImages(ctx, archives)
		if err != nil {
			return false, err
		}
		defer stop()
	}
	junit := filepath.Join(o.report, "junit.xml")
	if err := os.Remove(junit); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	runErr := o.ginkgo(ctx, skip, junit)
	results, err := readReport(junit)
	if err != nil {
		return false, errors.Join(runErr, err)
	}
	summarize(os.Stdout, results)
	fmt.Printf("log and JUnit report: %s\n", o.report)
	return runErr == nil && len(results) > 0, nil
}

func (o options) fetchKubeconfig(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, filepath.Join(o.bin, "weft"), "kubeconfig", "--name", o.name).Output()
	if err != nil {
		return "", fmt.Errorf("weft kubeconfig --name %s: %w (is the cluster up?)", o.name, err)
	}
	path := filepath.Join(o.report, "kubeconfig")
	return path, os.WriteFile(path, output, 0o600)
}

// ginkgo runs the suite; its output goes to a file, a line per finished spec
// to the terminal.
func (o options) ginkgo(ctx context.Context, skip []string, junit string) error {
	logFile, err := os.Create(filepath.Join(o.report, "e2e.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := []string{
		"--procs=" + strconv.Itoa(o.parallel), "--timeout=" + o.timeout.String(), "-v", "--no-color", "--silence-skips",
		"--output-dir=" + filepath.Dir(junit), "--junit-report=" + filepath.Base(junit), "--keep-going",
	}
	if !o.all {
		args = append(args, "--label-filter=Conformance")
	}
	if o.focus != "" {
		args = append(args, "--focus="+o.focus)
	}
	for _, s := range skip {
		args = append(args, "--skip="+s)
	}
	nodes, err := o.countNodes(ctx)
	if err != nil {
		return err
	}
	// Without the number, only the first of the parallel processes knows it,
	// and the others skip what needs two nodes.
	args = append(args, filepath.Join(o.bin, "e2e.test"), "--", "--num-nodes="+strconv.Itoa(nodes),
		"--kubeconfig="+o.kubeconfig, "--kubectl-path="+filepath.Join(o.bin, "kubectl"),
		"--provider=skeleton", "--disable-log-dump", "--e2e-output-dir="+o.report)
	command := exec.CommandContext(ctx, filepath.Join(o.bin, "ginkgo"), args...)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = time.Minute
	progress := &progress{out: os.Stdout}
	command.Stdout = io.MultiWriter(logFile, progress)
	command.Stderr = logFile
	if err := command.Run(); err != nil {
		return fmt.Errorf("ginkgo: %w", err)
	}
	return nil
}

func (o options) countNodes(ctx context.Context) (int, error) {
	output, err := exec.CommandContext(ctx, filepath.Join(o.bin, "kubectl"), "--kubeconfig", o.kubeconfig, "get", "nodes", "-o", "name").Output()
	if err != nil {
		return 0, fmt.Errorf("count nodes: %w", err)
	}
	return strings.Count(string(output), "\n"), nil
}

// parseSkips reads lines of a regular expression, " # " and the reason.
func parseSkips(text string) ([]string, error) {
	var list []string
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, reason, _ := strings.Cut(line, " # ")
		if strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("skip.txt:%d: no reason given for %q", i+1, pattern)
		}
		list = append(list, strings.TrimSpace(pattern))
	}
	return list, nil
}
