"""What speaks to a live cluster: the connection, what is read there for one stack, and what it says about the stack."""
