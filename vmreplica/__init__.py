"""vm-replica-broker: the kernel shared by broker, node and command line."""

import os

# TLS 1.3 only. gRPC's Python face cannot set a least version, but lets this variable choose the
# cipher suites of TLS 1.2 and below; with only a pre-shared-key suite, for which we never give a
# key, no handshake below 1.3 can succeed (1.3 has suites of its own). gRPC reads the variable once,
# when it is imported: hence here, before anything of ours can import it.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-AES256-CBC-SHA")
# gRPC's own log lines are no sentences for people; what matters reaches us as statuses.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
