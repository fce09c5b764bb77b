"""A VM's network: sockets in a process of their own, what is said over them by vCPU 0.

The NIC process holds the sockets and moves their bytes to and from rings in guest memory, as a
virtio device does. It runs while the vCPUs run, and goes on with whatever memory they run in:
so open connections survive a move, and a guest that stands still is silent. The sockets
themselves are the one thing of a VM that is not copied: the kernel that holds them, in the VM's
namespace, acknowledges what arrives, as the guest's own kernel would do once it runs again.
"""
