"""Where each truth lives in the cluster store: one function per key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The key layout of one cluster, prefix ``/vmreplica/CLUSTER/v1/``."""

    cluster: str

    @property
    def root(self) -> str:
        """Prefix of everything this cluster stores."""
        return f"/vmreplica/{self.cluster}/v1/"

    @property
    def elections(self) -> str:
        """Prefix of the broker candidates' keys."""
        return self.root + "election/"

    def election(self, lease_id: int) -> str:
        """A broker candidate's key (leased)."""
        return f"{self.elections}{lease_id:016x}"

    @property
    def nodes(self) -> str:
        """Prefix of all node incarnations."""
        return self.root + "nodes/"

    def node(self, name: str, incarnation: str) -> str:
        """One node process, leased."""
        return f"{self.nodes}{name}/{incarnation}"

    @property
    def node_configs(self) -> str:
        """Prefix of what people decided about nodes."""
        return self.root + "node-config/"

    def node_config(self, name: str) -> str:
        """Drain state of a node; survives its processes."""
        return self.node_configs + name

    @property
    def settings(self) -> str:
        """The central settings."""
        return self.root + "settings"

    @property
    def replicas(self) -> str:
        """Prefix of the replica records."""
        return self.root + "replicas/"

    def replica(self, replica_id: str) -> str:
        """Identity, trust group, placement and policy of one replica."""
        return self.replicas + replica_id

    def definition(self, replica_id: str) -> str:
        """The domain XML given at creation, until the first cycle brings one."""
        return f"{self.root}definitions/{replica_id}"

    def replica_index(self, trust_group: str, vm_uuid: str) -> str:
        """Makes (trust group, vm_uuid) unique; value = replica_id."""
        return f"{self.root}replica-index/{trust_group}/{vm_uuid}"

    @property
    def owners(self) -> str:
        """Prefix of the owner records."""
        return self.root + "owners/"

    def owner(self, replica_id: str) -> str:
        """Who may write one replica; no lease."""
        return self.owners + replica_id

    def op(self, op_id: str) -> str:
        """Presence proves that the transaction with this op id was applied (lease 1 h)."""
        return f"{self.root}ops/{op_id}"

    @property
    def replications(self) -> str:
        """Prefix of the primary side's records."""
        return self.root + "replications/"

    def replication(self, replica_id: str) -> str:
        """The primary side's record of one protected VM."""
        return self.replications + replica_id

    @property
    def authorizations(self) -> str:
        """Prefix of the authorization entries."""
        return self.root + "auth/"

    def authorization(self, primary: str) -> str:
        """One authorization entry."""
        return self.authorizations + primary

    @property
    def operations(self) -> str:
        """Prefix of long-running verbs."""
        return self.root + "operations/"

    def operation(self, operation_id: str) -> str:
        """One long-running verb."""
        return self.operations + operation_id

    def request(self, request_id: str) -> str:
        """The answer to a write with this request id (lease 24 h)."""
        return f"{self.root}requests/{request_id}"
