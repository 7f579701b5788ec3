"""The tests; a package of its own, because gpuhunt installs one of the same name."""
