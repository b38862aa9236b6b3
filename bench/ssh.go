package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// ssh is a private sshd on loopback, with keys, configuration and port of its
// own, and the client's configuration for it.
type ssh struct {
	dir    string
	config string // the client's
	daemon *exec.Cmd
	log    bytes.Buffer
	client string
	run    string // /run/sshd, if it was made here
}

func (b *bench) startSSH(ctx context.Context) (*ssh, error) {
	if err := install(ctx, map[string]string{"/usr/sbin/sshd": "openssh-server", "/usr/bin/ssh": "openssh-client"}); err != nil {
		return nil, err
	}
	s := &ssh{dir: filepath.Join(b.dir, "ssh"), client: "/usr/bin/ssh"}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	host, err := os.ReadFile(filepath.Join(s.dir, "host.pub"))
	if err != nil {
		return nil, err
	}
	server := fmt.Sprintf(`Port %d
ListenAddress 127.0.0.1
HostKey %[2]s/host
AuthorizedKeysFile %[2]s/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
PrintMotd no
MaxStartups 100
`, port, s.dir)
	client := fmt.Sprintf(`Host bench
HostName 127.0.0.1
Port %d
User root
IdentityFile %[2]s/user
IdentitiesOnly yes
UserKnownHostsFile %[2]s/known
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
BatchMode yes
LogLevel ERROR
ControlPath %[2]s/control
`, port, s.dir)
	s.config = filepath.Join(s.dir, "client")
	for name, text := range map[string]string{
		"server": server, "client": client,
		"known": fmt.Sprintf("[127.0.0.1]:%d %s", port, host),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	// Where sshd was never started as a service, its directory is missing.
	if err := os.Mkdir("/run/sshd", 0o755); err == nil {
		s.run = "/run/sshd"
	}
	s.daemon = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(s.dir, "server"))
	s.daemon.Stderr = &s.log
	if err := s.daemon.Start(); err != nil {
		s.close()
		return nil, err
	}
	// Ready when a connection stands.
	deadline := time.Now().Add(10 * time.Second)
	for {
		out, err := exec.CommandContext(ctx, s.client, "-F", s.config, "bench", "true").CombinedOutput()
		if err == nil {
			return s, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			s.close()
			return nil, fmt.Errorf("%w: %s%s", err, out, s.log.Bytes())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// kept is a command line that opens a connection and leaves it open, or uses
// the one that is.
func (s *ssh) kept(cmd string) []string {
	return []string{s.client, "-F", s.config, "-o", "ControlMaster=auto", "-o", "ControlPersist=60", "bench", cmd}
}

// cold is a command line with a connection of its own.
func (s *ssh) cold(cmd string) []string {
	return []string{s.client, "-F", s.config, "-o", "ControlPath=none", "bench", cmd}
}

func (s *ssh) close() {
	if s.daemon != nil && s.daemon.Process != nil {
		exec.Command(s.client, "-F", s.config, "-O", "exit", "bench").Run()
		s.daemon.Process.Kill()
		s.daemon.Wait()
	}
	if s.run != "" {
		os.Remove(s.run)
	}
}
