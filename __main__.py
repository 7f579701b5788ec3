"""What `pulumi up` runs: read the stack's configuration, deploy it, export what the user needs next."""

from modelstacks.program import deploy

deploy()
