"""The command line of vm-replica-broker. It talks over the wire only and holds no rule."""
