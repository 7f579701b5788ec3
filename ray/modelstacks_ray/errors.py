"""The one error of this application."""


class PlanError(RuntimeError):
    """The cluster is not what the plan was made for, or the plan cannot be read: one sentence, and what to do next."""
