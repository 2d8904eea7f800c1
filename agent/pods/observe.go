package pods

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.dev/weft/agent/cri"
)

// observed is what the runtime holds of one pod, newest first throughout.
type observed struct {
	sandboxes  []sandbox
	containers map[string][]container // by container name
}

type sandbox struct {
	id      string
	attempt uint32
	ready   bool
	created time.Time
	ips     []string
}

// state is the state of a container in the runtime.
type state int

const (
	stateUnknown state = iota
	stateCreated
	stateRunning
	stateExited
)

type container struct {
	id, name, sandboxID string
	restartCount        int32
	hash                string
	state               state
	created             time.Time
	started, finished   time.Time // zero before
	exitCode            int32
	reason, message     string
	image, imageRef     string
	backoff             time.Duration // to wait, once it has ended, before the next
	logPath             string
	user                *corev1.ContainerUser
	resources           *runtimeapi.LinuxContainerResources // nil if the runtime does not tell
}

// current returns the sandbox that containers may be started in, if any.
func (o observed) current() *sandbox {
	if len(o.sandboxes) > 0 && o.sandboxes[0].ready {
		return &o.sandboxes[0]
	}
	return nil
}

// latest returns the newest container of a name, or nil.
func (o observed) latest(name string) *container {
	if list := o.containers[name]; len(list) > 0 {
		return &list[0]
	}
	return nil
}

// active returns the newest container of a name in the current sandbox, or nil.
func (o observed) active(name string) *container {
	c, s := o.latest(name), o.current()
	if c == nil || s == nil || c.sandboxID != s.id {
		return nil
	}
	return c
}

// alive lists containers that run or may run, in any sandbox.
func (o observed) alive() []container {
	var out []container
	for _, list := range o.containers {
		for _, c := range list {
			if c.state == stateRunning || c.state == stateUnknown {
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(a, b container) int { return strings.Compare(a.id, b.id) })
	return out
}

// observe reads one pod from the runtime. messages caches the termination
// messages of ended containers by ID; it is read and written.
func observe(ctx context.Context, runtime cri.Runtime, uid types.UID, messages map[string]string) (observed, error) {
	selector := map[string]string{labelPodUID: string(uid)}
	out := observed{containers: map[string][]container{}}
	sandboxes, err := runtime.Sandboxes(ctx, selector)
	if err != nil {
		return out, fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range sandboxes {
		status, err := runtime.SandboxStatus(ctx, s.Id)
		if cri.IsNotFound(err) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("status of sandbox %s: %w", s.Id, err)
		}
		out.sandboxes = append(out.sandboxes, sandboxOf(status))
	}
	containers, err := runtime.Containers(ctx, selector)
	if err != nil {
		return out, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers {
		status, err := runtime.ContainerStatus(ctx, c.Id)
		if cri.IsNotFound(err) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("status of container %s: %w", c.Id, err)
		}
		parsed := containerOf(c.PodSandboxId, status)
		if parsed.state == stateExited {
			if _, known := messages[c.Id]; !known {
				messages[c.Id] = terminationMessage(status)
			}
			parsed.message = joinMessages(parsed.message, messages[c.Id])
		}
		out.containers[parsed.name] = append(out.containers[parsed.name], parsed)
	}
	out.sort()
	return out, nil
}

func (o observed) sort() {
	slices.SortFunc(o.sandboxes, func(a, b sandbox) int {
		return cmp.Or(b.created.Compare(a.created), cmp.Compare(b.attempt, a.attempt))
	})
	for _, list := range o.containers {
		slices.SortFunc(list, func(a, b container) int {
			return cmp.Or(b.created.Compare(a.created), cmp.Compare(b.restartCount, a.restartCount))
		})
	}
}

func sandboxOf(s *runtimeapi.PodSandboxStatus) sandbox {
	out := sandbox{
		id:      s.Id,
		attempt: s.GetMetadata().GetAttempt(),
		ready:   s.State == runtimeapi.PodSandboxState_SANDBOX_READY,
		created: time.Unix(0, s.CreatedAt),
	}
	if ip := s.GetNetwork().GetIp(); ip != "" {
		out.ips = append(out.ips, ip)
	}
	for _, more := range s.GetNetwork().GetAdditionalIps() {
		out.ips = append(out.ips, more.Ip)
	}
	return out
}

func containerOf(sandboxID string, s *runtimeapi.ContainerStatus) container {
	out := container{
		id: s.Id, name: s.Labels[labelContainerName], sandboxID: sandboxID,
		hash:     s.Annotations[annotationHash],
		created:  time.Unix(0, s.CreatedAt),
		image:    s.GetImage().GetImage(),
		imageRef: s.ImageRef,
		logPath:  s.LogPath,

		resources: s.GetResources().GetLinux(),
	}
	if s.GetImage().GetUserSpecifiedImage() != "" {
		out.image = s.Image.UserSpecifiedImage
	}
	// Written by us; anything else reads as zero.
	count, _ := strconv.ParseInt(s.Annotations[annotationRestartCount], 10, 32)
	out.restartCount = int32(count)
	out.backoff, _ = time.ParseDuration(s.Annotations[annotationBackoff])
	if user := s.GetUser().GetLinux(); user != nil {
		out.user = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{
			UID: user.Uid, GID: user.Gid, SupplementalGroups: user.SupplementalGroups}}
	}
	switch s.State {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		out.state = stateCreated
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		out.state, out.started = stateRunning, time.Unix(0, s.StartedAt)
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		out.state, out.exitCode = stateExited, s.ExitCode
		out.reason, out.message = s.Reason, s.Message
		out.started, out.finished = time.Unix(0, s.StartedAt), time.Unix(0, s.FinishedAt)
	}
	return out
}

func joinMessages(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ": " + b
}
