"""Build the image, and run programs in it as a container runtime would: without a runtime, with unshare and chroot."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path("/var/tmp/px-images")
UID = 8321

# A mount namespace with the image as a read-only root, and in it a PID namespace whose first process is the program.
RUN = r"""
set -e
root=$1 state=$2 events=$3; shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero urandom random; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
mount -t tmpfs -o uid=8321,gid=8321,mode=700 tmpfs "$root/run/px-sidecar"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$state" "$root/var/lib/px-sidecar"
mount --bind "$events" "$root/run/px-sidecar-events"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs -- chroot --userspec=8321:8321 --groups= "$root" "$@"
"""


def obstacle() -> str:
    """Return why no image can be built and run here; empty if it can."""
    if os.geteuid() != 0:
        return "building and mounting an image needs root"
    for program in ("buildah", "debootstrap", "unshare", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        return "namespaces are not allowed here"
    return ""


def buildah(*arguments: str, timeout_s: float = 600) -> str:
    """Run buildah on a store of its own, with plain copies: overlayfs may be missing."""
    CACHE.mkdir(exist_ok=True)
    conf = CACHE / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{CACHE}/store"\nrunroot = "{CACHE}/run"\n')
    done = subprocess.run(
        ["buildah", *arguments], env={**os.environ, "CONTAINERS_STORAGE_CONF": str(conf)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"buildah {' '.join(arguments[:2])}: {done.stderr[-2000:]}"
    return done.stdout.strip()


def image_of(debian: Path, tag: str) -> None:
    """Make an image of a Debian root, in place of the one that a registry has."""
    if tag in buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        return
    container = buildah("from", "scratch")
    mounted = buildah("mount", container)
    subprocess.run(["cp", "-a", f"{debian}/.", f"{mounted}/"], check=True)
    buildah("umount", container)
    buildah("commit", "-q", "--rm", container, tag)


def build(base: str) -> str:
    """Build the image as `.ci/release image` does, and return its name."""
    environ = {
        "CONTAINERS_STORAGE_CONF": str(CACHE / "storage.conf"),
        "BASE": base,
        # The certificates of this machine, by which it reaches the package index.
        "BUILD_OPTIONS": "--pull-never --volume /etc/ssl/certs:/etc/ssl/certs:ro",
    }
    done = subprocess.run(
        [str(ROOT / "systemd/containers/build-image"), "localhost/px-sidecar", "test"],
        env={**os.environ, **environ}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return "localhost/px-sidecar:test"


class Container:
    """One run of the image. ``pid`` is its first process, as this machine numbers it."""

    def __init__(self, image_root: Path, state: Path, events: Path, *arguments: str, log: Path, **environ: str) -> None:
        for folder in (state, events):
            folder.mkdir(exist_ok=True)
            os.chown(folder, UID, UID)
        # The image's own variables; a container has none of this machine's.
        clean = {"PATH": "/usr/bin", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", RUN, "run"]
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [*command, str(image_root), str(state), str(events), "/usr/bin/px-sidecar", *arguments],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env={**clean, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environ},
        )  # fmt: skip

    @property
    def pid(self) -> int:
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def exec(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb beside the first process, as `docker exec` does."""
        inside = ["nsenter", "-t", str(self.pid), "--mount", "--pid", "--root", "--wd=/"]
        return subprocess.run(
            [*inside, "/usr/bin/px-sidecar", *arguments],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def stop(self, grace_s: float) -> int:
        """Send SIGTERM to the first process, and return its exit status. Raises TimeoutExpired after the grace period."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(grace_s)

    def end(self) -> None:
        """End it by force, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


if __name__ == "__main__":
    print(obstacle())
