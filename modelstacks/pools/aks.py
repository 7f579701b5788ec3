"""An AKS agent pool: autoscaled from nothing up to the plan's limit, driver installed by AKS."""

from __future__ import annotations

import pulumi
from pulumi_azure_native import containerservice

from modelstacks.pools import GPU_TAINT_KEY, NodeGroup


def resources(group: NodeGroup, opts: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """The agent pool. Its name is short, because AKS allows twelve letters and digits."""
    spot = group.way.way == "spot"
    cloud = group.cloud
    pool = containerservice.AgentPool(
        group.name,
        resource_group_name=cloud.resource_group or group.cluster,
        # The class's own first parameter has that name.
        resource_name_=group.cluster,
        agent_pool_name=group.short_name,
        mode=containerservice.AgentPoolMode.USER,
        vm_size=group.machine.name,
        os_sku=containerservice.OSSKU.UBUNTU,
        os_disk_size_gb=group.disk_gib,
        enable_auto_scaling=True,
        count=min(group.nodes, group.nodes_at_most),
        min_count=0,
        # AKS asks for at least one, also of a pool that is scaled to nothing.
        max_count=max(1, group.nodes_at_most),
        availability_zones=[zone.rpartition("-")[2] for zone in group.zones] or None,
        gpu_profile=containerservice.GPUProfileArgs(driver=containerservice.GPUDriver.INSTALL),
        capacity_reservation_group_id=group.way.id if group.way.way == "reservation" else None,
        proximity_placement_group_id=cloud.placement_group,
        scale_set_priority=containerservice.ScaleSetPriority.SPOT
        if spot
        else containerservice.ScaleSetPriority.REGULAR,
        scale_set_eviction_policy=containerservice.ScaleSetEvictionPolicy.DELETE if spot else None,
        # Up to the price of a regular machine.
        spot_max_price=-1.0 if spot else None,
        node_labels=group.labels,
        node_taints=[f"{GPU_TAINT_KEY}=true:NoSchedule"],
        # A machine more than the plan's may not exist, so an old one goes first.
        upgrade_settings=containerservice.AgentPoolUpgradeSettingsArgs(max_surge="0", max_unavailable="1"),
        # The autoscaler moves the count within its bounds.
        opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(ignore_changes=["count"])),
    )
    return [pool]
