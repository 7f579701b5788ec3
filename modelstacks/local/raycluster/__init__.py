"""A real Ray on this machine, with simulated GPU nodes, that runs the serve config of a stack."""
