"""vSphere's system traffic types, and which VMkernel service is of which type."""

from __future__ import annotations

SYSTEM_TRAFFIC = (
    "management",
    "faultTolerance",
    "vmotion",
    "virtualMachine",
    "iSCSI",
    "nfs",
    "hbr",
    "vsan",
    "vdp",
    "backupNfc",
    "nvmetcp",
    "provisioning",
)
"""NIOC v3's types (vmotion-facts.md, section 6); a type's number is its place from 1 on."""

SERVICE_TRAFFIC = {
    "management": "management",
    "vmotion": "vmotion",
    "provisioning": "provisioning",
    "faultToleranceLogging": "faultTolerance",
    "vSphereReplication": "hbr",
    "vSphereReplicationNFC": "hbr",
    "vSphereBackupNFC": "backupNfc",
    "vsan": "vsan",
    "nvmeTcp": "nvmetcp",
    "iscsi": "iSCSI",
    "nfs": "nfs",
}
"""What the services of a vmk send; iSCSI and NFS are named here as if they were services."""

VM_TRAFFIC = "virtualMachine"


def traffic_number(name: str) -> int:
    """A type's number in frame marks, 1 to 12; 0 for "" (none).

    Raises:
        ValueError: there is no such type.
    """
    return SYSTEM_TRAFFIC.index(name) + 1 if name else 0
