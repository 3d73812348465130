"""nginx and HAProxy as relays of the same stream: configurations to choose the best of."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lab import BenchFailed, wait
from vmreplica.adapters.tls import TlsFiles

SUITE = "TLS_AES_128_GCM_SHA256"


@dataclass(frozen=True, slots=True)
class ProxySetting:
    """One configuration."""

    text: str
    workers: int
    window_bytes: int
    buffer_bytes: int


NGINX = (
    ProxySetting("1 worker, window 64k, buffer 64k", 1, 65_535, 65_536),
    ProxySetting("1 worker, window 1m, buffer 256k", 1, 1 << 20, 256 << 10),
    ProxySetting("1 worker, window 4m, buffer 1m", 1, 4 << 20, 1 << 20),
    ProxySetting("2 workers, window 4m, buffer 256k", 2, 4 << 20, 256 << 10),
    ProxySetting("1 worker, window 16m, buffer 64k", 1, 16 << 20, 64 << 10),
)
HAPROXY = (
    ProxySetting("1 thread, window 64k, bufsize 16k", 1, 65_535, 16_384),
    ProxySetting("1 thread, window 1m, bufsize 64k", 1, 1 << 20, 65_536),
    ProxySetting("2 threads, window 4m, bufsize 64k", 2, 4 << 20, 65_536),
    ProxySetting("1 thread, window 4m, bufsize 256k", 1, 4 << 20, 256 << 10),
    ProxySetting("1 thread, window 16m, bufsize 128k", 1, 16 << 20, 128 << 10),
)


class Proxy:
    """A running proxy; ended by ``close``."""

    def __init__(self, command: Sequence[str], log: Path, port: int) -> None:
        self.command = " ".join(command)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self._log = log
        wait(f"{command[0]} on port {port}", lambda: self._listens(port), 10)

    def _listens(self, port: int) -> bool:
        if self._process.poll() is not None:
            raise BenchFailed(f"{self.command} ended: {self._log.read_text()[-500:]}")
        wanted = f":{port:04X} 00000000:0000 0A"
        return wanted in Path("/proc/net/tcp").read_text()

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        time.sleep(0.1)


def nginx(
    directory: Path, files: TlsFiles, setting: ProxySetting, port: int, sink: int
) -> tuple[Proxy, str]:
    """Start nginx; its configuration as text."""
    text = f"""\
worker_processes {setting.workers};
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  http2_recv_buffer_size 1m;
  http2_body_preread_size {setting.window_bytes};
  client_body_buffer_size {setting.buffer_bytes};
  keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    server_name localhost;
    ssl_certificate {files.certificate};
    ssl_certificate_key {files.key};
    ssl_client_certificate {files.ca};
    ssl_verify_client on;
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites {SUITE};
    ssl_buffer_size 16k;
    location / {{
      grpc_pass grpcs://127.0.0.1:{sink};
      grpc_ssl_name localhost;
      grpc_ssl_server_name on;
      grpc_ssl_protocols TLSv1.3;
      grpc_ssl_conf_command Ciphersuites {SUITE};
      grpc_ssl_certificate {files.certificate};
      grpc_ssl_certificate_key {files.key};
      grpc_ssl_trusted_certificate {files.ca};
      grpc_ssl_verify on;
      grpc_buffer_size {setting.buffer_bytes};
      grpc_socket_keepalive on;
      grpc_read_timeout 300s;
      grpc_send_timeout 300s;
    }}
  }}
}}
"""
    config = directory / "nginx.conf"
    config.write_text(text)
    command = ["nginx", "-p", str(directory), "-c", str(config)]
    return Proxy(command, directory / "nginx.out", port), text


def haproxy(
    directory: Path, files: TlsFiles, setting: ProxySetting, port: int, sink: int
) -> tuple[Proxy, str]:
    """Start HAProxy; its configuration as text."""
    both = directory / "haproxy.pem"
    both.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    text = f"""\
global
  nbthread {setting.workers}
  maxconn 256
  tune.bufsize {setting.buffer_bytes}
  tune.h2.initial-window-size {setting.window_bytes}
  tune.ssl.maxrecord 0
  ssl-default-bind-ciphersuites {SUITE}
  ssl-default-server-ciphersuites {SUITE}
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend in
  bind 127.0.0.1:{port} ssl crt {both} ca-file {files.ca} verify required alpn h2
  default_backend node
backend node
  server n1 127.0.0.1:{sink} ssl crt {both} ca-file {files.ca} verify required verifyhost localhost alpn h2
"""
    config = directory / "haproxy.cfg"
    config.write_text(text)
    return Proxy(["haproxy", "-f", str(config)], directory / "haproxy.out", port), text
