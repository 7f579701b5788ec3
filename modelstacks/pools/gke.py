"""A GKE node pool: autoscaled from nothing up to the plan's limit, driver and device plugin installed by GKE."""

from __future__ import annotations

import pulumi
from pulumi_gcp import container

from modelstacks.pools import GPU_TAINT_KEY, NodeGroup

# The longest that flex-start nodes live (GKE documentation on flex-start, read 2026-11-24).
_SEVEN_DAYS = "604800s"
_RESERVATION_KEY = "compute.googleapis.com/reservation-name"


def resources(group: NodeGroup, opts: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """The node pool."""
    way = group.way.way
    flex = way == "flex-start"
    compact = group.cloud.placement_group
    pool = container.NodePool(
        group.name,
        container.NodePoolArgs(
            name=group.name,
            cluster=group.cluster,
            location=group.region,
            project=group.cloud.project,
            node_locations=list(group.zones) or None,
            initial_node_count=0,
            autoscaling=container.NodePoolAutoscalingArgs(
                total_min_node_count=0, total_max_node_count=group.nodes_at_most, location_policy="ANY"
            ),
            # Repair would replace a flex-start node, which cannot be had again at once.
            management=container.NodePoolManagementArgs(auto_repair=not flex, auto_upgrade=True),
            # A machine more than the plan's may not exist, so an old one goes first.
            upgrade_settings=container.NodePoolUpgradeSettingsArgs(strategy="SURGE", max_surge=0, max_unavailable=1),
            placement_policy=None
            if compact is None
            else container.NodePoolPlacementPolicyArgs(
                type="COMPACT", policy_name=None if compact == "compact" else compact
            ),
            node_config=container.NodePoolNodeConfigArgs(
                machine_type=group.machine.name,
                guest_accelerators=[
                    container.NodePoolNodeConfigGuestAcceleratorArgs(
                        type=group.cloud_gpu,
                        count=group.machine.gpus,
                        gpu_driver_installation_config=(
                            container.NodePoolNodeConfigGuestAcceleratorGpuDriverInstallationConfigArgs(
                                gpu_driver_version="LATEST"
                            )
                        ),
                    )
                ],
                spot=way == "spot",
                flex_start=True if flex else None,
                max_run_duration=_SEVEN_DAYS if flex else None,
                reservation_affinity=_reservation(group),
                disk_size_gb=group.disk_gib,
                ephemeral_storage_local_ssd_config=None
                if group.local_ssds is None
                else container.NodePoolNodeConfigEphemeralStorageLocalSsdConfigArgs(local_ssd_count=group.local_ssds),
                gvnic=container.NodePoolNodeConfigGvnicArgs(enabled=True),
                labels=group.labels,
                # GKE adds this taint by itself; undeclared, it would look like a change at every preview.
                taints=[
                    container.NodePoolNodeConfigTaintArgs(key=GPU_TAINT_KEY, value="present", effect="NO_SCHEDULE")
                ],
            ),
        ),
        opts=opts,
    )
    return [pool]


def _reservation(group: NodeGroup) -> container.NodePoolNodeConfigReservationAffinityArgs:
    """A named reservation, any that matches, or none: unasked, GKE would draw from any."""
    number = group.way.id
    if group.way.way != "reservation" or number is None:
        return container.NodePoolNodeConfigReservationAffinityArgs(consume_reservation_type="NO_RESERVATION")
    if number == "any":
        return container.NodePoolNodeConfigReservationAffinityArgs(consume_reservation_type="ANY_RESERVATION")
    return container.NodePoolNodeConfigReservationAffinityArgs(
        consume_reservation_type="SPECIFIC_RESERVATION", key=_RESERVATION_KEY, values=[number]
    )
