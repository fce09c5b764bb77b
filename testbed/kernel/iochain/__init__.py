"""The IOChain of a port: stages compiled into eBPF and attached on clsact."""
