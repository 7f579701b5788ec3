"""An EKS managed node group with the launch template that its reservation, disks and network interfaces need."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pulumi
from pulumi_aws import Provider, ec2, eks, iam

from modelstacks.pools import GPU_TAINT_KEY, NodeGroup

_CAPACITY_TYPES = {"spot": "SPOT", "capacity-block": "CAPACITY_BLOCK"}
# Nodes of Amazon Linux 2023 put the kubelet and containerd on local NVMe when nodeadm is told so.
_LOCAL_DISKS = """\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="modelstacks"

--modelstacks
Content-Type: application/node.eks.aws

apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  instance:
    localStorage:
      strategy: RAID0

--modelstacks--
"""


def resources(group: NodeGroup, opts: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """A placement group where one is wanted, the launch template and the node group."""
    if group.region is not None:
        provider = Provider(f"{group.name}-aws", region=group.region, opts=pulumi.ResourceOptions(parent=opts.parent))
        opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(provider=provider))
    look_up = pulumi.InvokeOutputOptions(parent=opts.parent, provider=opts.provider)
    cluster = eks.get_cluster_output(name=group.cluster, opts=look_up)
    made: list[pulumi.Resource] = []
    placement = group.cloud.placement_group
    placement_name: pulumi.Input[str] | None = placement
    if placement == "compact":
        close = ec2.PlacementGroup(group.name, ec2.PlacementGroupArgs(name=group.name, strategy="cluster"), opts=opts)
        made.append(close)
        placement_name = close.name
    template = _launch_template(group, cluster, placement_name, opts)
    nodes = eks.NodeGroup(
        group.name,
        eks.NodeGroupArgs(
            cluster_name=group.cluster,
            node_group_name=group.name,
            node_role_arn=_role(group, look_up),
            subnet_ids=_subnets(group, cluster, look_up),
            ami_type=group.cloud.image or "AL2023_x86_64_NVIDIA",
            capacity_type=_CAPACITY_TYPES.get(group.way.way, "ON_DEMAND"),
            scaling_config=eks.NodeGroupScalingConfigArgs(
                min_size=min(group.nodes, group.nodes_at_most),
                # AWS asks for at least one, also of a group that is scaled to nothing.
                max_size=max(1, group.nodes_at_most),
                desired_size=group.nodes,
            ),
            launch_template=eks.NodeGroupLaunchTemplateArgs(id=template.id, version=template.latest_version.apply(str)),
            # A machine more than the plan's may not exist, so an old one goes first.
            update_config=eks.NodeGroupUpdateConfigArgs(max_unavailable=1, update_strategy="MINIMAL"),
            labels=group.labels | {"k8s.amazonaws.com/accelerator": f"nvidia-{group.cloud_gpu}"},
            taints=[eks.NodeGroupTaintArgs(key=GPU_TAINT_KEY, value="true", effect="NO_SCHEDULE")],
        ),
        # The autoscaler moves the count within its bounds.
        opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(ignore_changes=["scalingConfig.desiredSize"])),
    )
    return [*made, template, nodes]


def _launch_template(
    group: NodeGroup,
    cluster: pulumi.Output[eks.GetClusterResult],
    placement: pulumi.Input[str] | None,
    opts: pulumi.ResourceOptions,
) -> ec2.LaunchTemplate:
    bottlerocket = (group.cloud.image or "").startswith("BOTTLEROCKET")
    local = group.machine.local_disk_gb is not None and not bottlerocket
    block = group.way.way == "capacity-block"
    return ec2.LaunchTemplate(
        group.name,
        ec2.LaunchTemplateArgs(
            name=group.name,
            instance_type=group.machine.name,
            instance_market_options=ec2.LaunchTemplateInstanceMarketOptionsArgs(market_type="capacity-block")
            if block
            else None,
            capacity_reservation_specification=_reservation(group),
            block_device_mappings=[
                ec2.LaunchTemplateBlockDeviceMappingArgs(
                    device_name="/dev/xvdb" if bottlerocket else "/dev/xvda",
                    ebs=ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                        volume_size=group.disk_gib,
                        volume_type="gp3",
                        iops=6000,
                        throughput=1000,
                        encrypted="true",
                        delete_on_termination="true",
                    ),
                )
            ],
            network_interfaces=_adapters(group, cluster),
            placement=None if placement is None else ec2.LaunchTemplatePlacementArgs(group_name=placement),
            metadata_options=ec2.LaunchTemplateMetadataOptionsArgs(
                http_tokens="required", http_put_response_hop_limit=1
            ),
            user_data=base64.b64encode(_LOCAL_DISKS.encode()).decode() if local else None,
        ),
        opts=opts,
    )


def _reservation(group: NodeGroup) -> ec2.LaunchTemplateCapacityReservationSpecificationArgs:
    if group.way.way not in ("reservation", "capacity-block"):
        # Open reservations of others in the account are left alone.
        return ec2.LaunchTemplateCapacityReservationSpecificationArgs(capacity_reservation_preference="none")
    return ec2.LaunchTemplateCapacityReservationSpecificationArgs(
        capacity_reservation_target=ec2.LaunchTemplateCapacityReservationSpecificationCapacityReservationTargetArgs(
            capacity_reservation_id=group.way.id
        )
    )


def _adapters(
    group: NodeGroup, cluster: pulumi.Output[eks.GetClusterResult]
) -> list[ec2.LaunchTemplateNetworkInterfaceArgs] | None:
    """Every Elastic Fabric Adapter of the machine, one a network card; the first one carries IP traffic too."""
    if group.fabric != "efa" or group.machine.efa_interfaces is None:
        return None
    security = cluster.apply(lambda found: found.vpc_config.cluster_security_group_id)
    return [
        ec2.LaunchTemplateNetworkInterfaceArgs(
            network_card_index=card,
            device_index=0 if card == 0 else 1,
            interface_type="efa" if card == 0 else "efa-only",
            security_groups=[security],
            delete_on_termination="true",
        )
        for card in range(group.machine.efa_interfaces)
    ]


def _role(group: NodeGroup, look_up: pulumi.InvokeOutputOptions) -> pulumi.Input[str]:
    role = group.cloud.node_role or f"KarpenterNodeRole-{group.cluster}"
    return role if role.startswith("arn:") else iam.get_role_output(name=role, opts=look_up).arn


def _subnets(
    group: NodeGroup, cluster: pulumi.Output[eks.GetClusterResult], look_up: pulumi.InvokeOutputOptions
) -> pulumi.Input[Sequence[str]]:
    """The named subnets, or the cluster's, in the zones that the stack names."""
    if group.cloud.subnets:
        return list(group.cloud.subnets)
    ids = cluster.apply(lambda found: found.vpc_config.subnet_ids)
    if not group.zones:
        return ids

    def in_zones(found: Sequence[str]) -> Sequence[ec2.GetSubnetsFilterArgs]:
        return [
            ec2.GetSubnetsFilterArgs(name="subnet-id", values=found),
            ec2.GetSubnetsFilterArgs(name="availability-zone", values=list(group.zones)),
        ]

    return ec2.get_subnets_output(filters=ids.apply(in_zones), opts=look_up).ids
