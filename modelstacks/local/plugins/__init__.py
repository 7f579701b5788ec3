"""Stand-ins for the Pulumi plugins that a closed network cannot download.

`pulumi up` needs two programs beside the engine: the Kubernetes provider (`pulumi-resource-kubernetes`) and
the Python language host (`pulumi-language-python`). Where the official ones can be had, use them. Where they
cannot, `install.install(bin_dir)` writes two commands of the same names that run this package: a provider
over the official `kubernetes` client with server-side apply, and a language host over the `pulumi` package.
They are for the embedded cluster and for clusters behind a closed network. The provider applies single
objects: Helm releases, YAML groups, kustomizations and patches are refused, with the official plugin named as
the next step.
"""
