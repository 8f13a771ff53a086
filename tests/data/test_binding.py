"""Who can connect to a server that was told to listen on one address: looked up in the kernel's tables, and tried."""

import pathlib
import re
import socket
import subprocess
import sys

import pytest

from tests.workers import ROOT, input_server, input_server_process
from tf_rnnt_kd.data import binding
from tf_rnnt_kd.errors import UserError

_LISTENING = "0A"  # in /proc/net/tcp
# A process of its own: the filter stays for good.
_SERVER = """
import socket, sys
from tf_rnnt_kd.data.binding import listen_only_on
listen_only_on(sys.argv[1])
servers = [socket.create_server(("0.0.0.0", 0)), socket.create_server(("127.0.0.3", 0)),
           socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)]
print(*(server.getsockname()[0] for server in servers), flush=True)
"""


def own_address():
    """One of this machine that is no loopback address; looked up without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return probe.getsockname()[0]


def _addresses_of_listeners(port):
    """Of the sockets that listen on a port, as the kernel writes them."""
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in pathlib.Path("/proc/net", name).read_text().splitlines()
    ]
    return [row[1].split(":")[0] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == _LISTENING]


def test_any_address_becomes_the_wanted_one_and_others_stay():
    for address, found in (
        ("127.0.0.1", "127.0.0.1 127.0.0.3 ::ffff:127.0.0.1"),
        ("127.0.0.2", "127.0.0.2 127.0.0.3 ::ffff:127.0.0.2"),
    ):
        ran = subprocess.run([sys.executable, "-c", _SERVER, address], cwd=ROOT, capture_output=True, text=True)
        assert (ran.stdout.strip(), ran.stderr) == (found, "")


def test_an_input_server_listens_on_loopback_only():
    with input_server() as address:
        port = int(address.rsplit(":", 1)[1])
        assert [found[-8:] for found in _addresses_of_listeners(port)] == ["0100007F"]
        socket.create_connection(("127.0.0.1", port), 10).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((own_address(), port), 10)


def test_an_input_server_for_others_says_what_that_means():
    address = own_address()
    with input_server_process("--listen", address, stderr=subprocess.PIPE) as (process, port):
        socket.create_connection((address, port), 10).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 10)
        line = next(line for line in process.stderr if "warning" in line)
    assert re.search(r"asks nobody who they are: whoever connects reads and writes files as this user.*tunnel", line)


def test_where_the_kernel_refuses_nothing_is_opened(monkeypatch):
    monkeypatch.setattr(binding.platform, "machine", lambda: "pdp11")
    with pytest.raises(UserError, match="cannot keep a server to 127.0.0.1 .*--listen 0.0.0.0"):
        binding.listen_only_on("127.0.0.1")


def test_a_name_is_no_address():
    with pytest.raises(UserError, match="'myhost' is no address of an interface"):
        binding.listen_only_on("myhost")
