"""The Ray Serve application of a stack: it serves what the plan says, on nodes that are what the plan says, or stops.

These files run inside the Ray cluster, mounted from a ConfigMap beside the plan. They know nothing of the rest of
modelstacks, and none of them imports vLLM until the application is built.
"""
