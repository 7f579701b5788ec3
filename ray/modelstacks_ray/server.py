"""The engine's deployment: looks at the nodes it was given before it loads a model onto them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.util import get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from modelstacks_ray import placement, probe
from modelstacks_ray.errors import PlanError
from modelstacks_ray.serving_plan import ServingPlan

# A server that went before gives its memory back within seconds; a node that does not answer is said to be so.
_MEMORY_WITHIN_S = 60
_ANSWER_WITHIN_S = 60


class PlannedServer(LLMServer):
    """Ray's LLM server, started only on nodes that are what the plan assumes."""

    # Serve awaits it, as it does for the class above.
    async def __init__(  # type: ignore[misc]
        self, llm_config: LLMConfig, *, plan: ServingPlan, **others: Any
    ) -> None:
        """Check the placement group, then start the engine. Raises PlanError before anything is loaded."""
        group = get_current_placement_group()
        if group is None:
            raise PlanError(f"{plan.name}: the server was started without a placement group")
        table = placement_group_table(group)
        placement.check_groups(plan, table["bundles_to_node_id"])
        await check_nodes(plan, group, table["bundles_to_node_id"])
        await super().__init__(llm_config, **others)


async def check_nodes(plan: ServingPlan, group: Any, node_of_bundle: dict[int, str]) -> None:
    """Ask every node of the placement group what it has. Raises PlanError that names each fault and its node."""
    bundle_of_node = {node: index for index, node in sorted(node_of_bundle.items(), reverse=True)}
    deadline = time.monotonic() + _MEMORY_WITHIN_S
    while True:
        asked = {
            node: ray.remote(probe.look)
            .options(
                num_cpus=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            )
            .remote(plan.paths)
            for node, index in bundle_of_node.items()
        }
        try:
            answers = await asyncio.wait_for(asyncio.gather(*asked.values()), _ANSWER_WITHIN_S)
        except TimeoutError:
            text = f"{plan.name}: its nodes did not answer within {_ANSWER_WITHIN_S} s"
            raise PlanError(f"{text}. See `ray status` and the logs of the worker pods") from None
        found = [
            f"node {node[:8]}: {fault}"
            for node, facts in zip(asked, answers, strict=True)
            for fault in probe.faults(plan, facts)
        ]
        if not found:
            return
        only_memory = all("something else runs on it" in fault for fault in found)
        if not only_memory or time.monotonic() > deadline:
            text = f"{plan.name} was not loaded: {'; '.join(found)}"
            raise PlanError(f"{text}. Give the stack such nodes, or plan it for the ones there are")
        await asyncio.sleep(5)
