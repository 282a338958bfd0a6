# SPDX-License-Identifier: Apache-2.0
"""A private RabbitMQ node, beside any that already runs, under any user."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from devtools.port_mapper import PortMapper
from devtools.ports import answers, free_port
from devtools.process import Process, ServerError
from devtools.server import Server, clean_environment, write_private

if TYPE_CHECKING:
    from collections.abc import Sequence

# Debian's /usr/sbin/rabbitmq-server insists on the user rabbitmq and its folders: the real script
# comes first.
PLACES = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/opt/rabbitmq/sbin",
)

# A node of another Debian runs in that system's own root, where its libraries are. The mounts are
# in a namespace of the one process: they are gone with it, however it ends.
ENTER_ROOT = """\
set -e
root=$1 folder=$2
shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$folder" "$root/srv"
exec chroot "$root" "$@"
"""
FOLDER_IN_ROOT = Path("/srv")

# The limits are for small machines and full disks: an alarm would block every publisher.
CONFIGURATION = """\
default_vhost = {name}
default_user = {name}
default_pass = {password}
default_user_tags.administrator = true
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
disk_free_limit.absolute = 10MB
vm_memory_high_watermark.relative = 0.6
"""


def version_of(root: Path) -> str | None:
    """The version of RabbitMQ that is installed in a system's root; None if there is none."""
    names = [path.name for path in (root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")]
    return names[0].partition("-")[2] if names else None


def find_scripts() -> Path | None:
    """Return the folder that holds rabbitmq-server and rabbitmqctl."""
    on_path = shutil.which("rabbitmq-server")
    places = [*map(Path, PLACES), *([Path(on_path).parent] if on_path else [])]
    return next((place for place in places if (place / "rabbitmq-server").exists()), None)


class RabbitMQ(Server):
    """A node with a user, a random password and a virtual host of its own.

    It also has its own port mapper (epmd), so that it neither depends on one that another node
    started nor leaves one behind.

    Args:
        configuration: further lines of rabbitmq.conf.
        plugins: names of the plugins to enable.
        root: of another Debian system, whose RabbitMQ is run (see ``debian_root``); this needs
            root's rights.
        node: name of the node, unique in its cluster.
        port_mapper: shared by the nodes of a cluster; whoever gives one starts and stops it.
    """

    label = "RabbitMQ"
    name = "carrot"  # of the user and of the virtual host

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        configuration: str = "",
        plugins: Sequence[str] = (),
        root: Path | None = None,
        node: str = "carrot",
        port_mapper: PortMapper | None = None,
    ) -> None:
        super().__init__(folder, port=port)
        self._configuration = configuration
        self._plugins = plugins
        self._root = root
        self.node = f"{node}@localhost"
        self._shares_mapper = port_mapper is not None
        self._port_mapper = port_mapper or PortMapper()
        self._distribution_port = free_port()

    @property
    def url(self) -> str:
        return f"amqp://{self.name}:{self.password}@127.0.0.1:{self.port}/{self.name}"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node and return what it prints."""
        result = subprocess.run(
            self.command(str(self._scripts / "rabbitmqctl"), "--quiet", *arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode:
            raise ServerError(f"rabbitmqctl {arguments[0]}: {result.stdout}{result.stderr}")
        return result.stdout

    def sync(self) -> None:
        """Write to disk which quorum queues there are.

        The node does so a few seconds after their declaration. Killed before that, it starts them
        anew without their members, and they have no leader until somebody deletes them
        (rabbitmq-server issue 15725).
        """
        self.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")

    def stop(self) -> None:
        """End the node cleanly; durable queues and persistent messages stay."""
        self._stop_with(signal.SIGTERM)
        self._end_port_mapper()

    def kill(self) -> None:
        """kill -9 of the whole node."""
        super().kill()
        self._end_port_mapper()

    def command(self, program: str, *arguments: str) -> list[str]:
        """What runs a program beside this node: in the root where it lives, if it has one."""
        if self._root is None:
            return [program, *arguments]
        enter = ["unshare", "--mount", "sh", "-c", ENTER_ROOT, "sh"]
        return [*enter, str(self._root), str(self.folder), program, *arguments]

    @cached_property
    def _scripts(self) -> Path:
        if self._root is not None:
            if version_of(self._root) is None:
                raise ServerError(f"There is no RabbitMQ in {self._root}")
            return Path(PLACES[0])
        scripts = find_scripts()
        if scripts is None:
            raise ServerError(
                "RabbitMQ is not installed: install the package rabbitmq-server, "
                "or name a running server in CARROT_BROKER_URL"
            )
        return scripts

    @cached_property
    def password(self) -> str:
        """The password of the first run in this folder: the node keeps it in its database."""
        file = self.folder / "password"
        if not file.exists():
            write_private(file, secrets.token_hex(16))
        return file.read_text()

    @cached_property
    def environment(self) -> dict[str, str]:
        """Every place that a node would otherwise look for in /etc, /var or the home folder."""
        folder = self.folder if self._root is None else FOLDER_IN_ROOT
        return clean_environment(folder) | {
            "RABBITMQ_NODENAME": self.node,  # unique by the port mapper of its own
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",  # standard output, where a failed start is told too
            "RABBITMQ_PID_FILE": str(folder / "server.pid"),
            # Without input the script would stay in between and keep the signals from the node.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._port_mapper.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
        }

    def _ready(self) -> bool:
        return answers(self.port, b"AMQP\x00\x00\x09\x01")

    def _launch(self) -> Process:
        command = self.command(str(self._scripts / "rabbitmq-server"))
        own = CONFIGURATION.format(name=self.name, password=self.password)
        write_private(self.folder / "rabbitmq.conf", own + self._configuration)
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        if not self._shares_mapper:
            self._port_mapper.start(
                self.command, folder=self.folder, log=self.log, environment=self.environment
            )
        return Process(command, folder=self.folder, log=self.log, environment=self.environment)

    def _end_port_mapper(self) -> None:
        if not self._shares_mapper:
            self._port_mapper.stop()
