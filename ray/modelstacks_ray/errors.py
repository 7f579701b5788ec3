"""The one error of this application."""

from ray.serve.exceptions import RayServeException


class PlanError(RayServeException):
    """The cluster is not what the plan was made for, or the plan cannot be read: one sentence, and what to do next.

    Of this kind Serve keeps the sentence alone, and does not build the application three times more.
    """
