"""A whole cluster on one machine: hosts in namespaces, etcd, libvirt, brokers, nodes, guests."""
