"""The embedded Kubernetes: a real control plane with simulated GPU nodes, on loopback only."""
