#!/usr/bin/python
# License: Apache-2.0 OR GPL-3.0-or-later (the GNU General Public License, version 3 or later)
"""Ansible module: cancel the spot requests behind instances, so that none of them comes again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_spot_cancel
short_description: Cancel the spot requests behind instances
version_added: 0.1.0
description:
  - A persistent spot request outlives its instance, and EC2 starts another one for it. This cancels every request that
    could, in whatever state, before instances are terminated. The instances are left alone.
  - amazon.aws.ec2_spot_instance cancels requests that are open or active, not those of stopped instances.
options:
  instance_ids:
    description: Instances whose requests are cancelled; those of on-demand instances have none.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
author: The Lightbox authors (@lightbox-mlops)
"""

EXAMPLES = r"""
- name: No spot request brings them back
  lightbox.mlops.ec2_spot_cancel:
    instance_ids: [i-0123456789abcdef0]
"""

RETURN = r"""
cancelled:
  description: Ids of the requests that were cancelled, or would be.
  type: list
  elements: str
  returned: always
"""

try:
    import botocore.exceptions
except ImportError:
    pass  # AnsibleAWSModule says what is missing

from typing import Any

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

# States of a request that can still start an instance.
LIVING = ("open", "active", "disabled")


def requests_of(ec2: Any, instance_ids: list[str]) -> list[str]:
    """Return the ids of the living spot requests behind instances."""
    if not instance_ids:
        return []
    filters = [{"Name": "instance-id", "Values": instance_ids}]
    found = ec2.get_paginator("describe_spot_instance_requests").paginate(Filters=filters)
    return [
        one["SpotInstanceRequestId"] for page in found for one in page["SpotInstanceRequests"] if one["State"] in LIVING
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleAWSModule(
        argument_spec={"instance_ids": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    try:
        ec2 = module.client("ec2")
        requests = requests_of(ec2, module.params["instance_ids"])
        if requests and not module.check_mode:
            ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=requests)
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        module.fail_json_aws(error, msg="Could not cancel spot requests")
    module.exit_json(changed=bool(requests), cancelled=requests)


if __name__ == "__main__":
    main()
