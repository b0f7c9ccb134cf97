"""What is in the account from the start: Debian's images, their aliases in Parameter Store, and an administrator."""

from __future__ import annotations

import datetime
from typing import Any

from lab.api import clock
from lab.settings import DEBIAN_OWNER, RELEASES, Settings

# The day that the images' names bear; it never moves, so that the same playbook finds the same image.
PUBLISHED = datetime.datetime(2026, 1, 12, 6, 0)
ADMINISTRATOR = "lab-administrator"


def image_name(number: str) -> str:
    """Return the name of Debian's image of a release number, in the form Debian publishes them under."""
    return f"debian-{number}-amd64-{PUBLISHED:%Y%m%d}-2352"


def plant(settings: Settings) -> None:
    """Put the account's first contents in place, the same at every start."""
    from moto.backends import get_backend
    from moto.moto_api._internal import mock_random

    mock_random.seed(0)
    clock.freeze(PUBLISHED.replace(tzinfo=datetime.timezone.utc).timestamp())

    region = settings.region
    ec2 = get_backend("ec2")[settings.account][region]
    ssm = get_backend("ssm")[settings.account][region]
    iam = get_backend("iam")[settings.account]["aws"]
    for number in RELEASES.values():
        _alias(settings, ssm, f"/aws/service/debian/release/{number}/latest/amd64", _image(ec2, number))
    _administrator(settings, iam)
    clock.freeze(None)


def _image(ec2: Any, number: str) -> str:
    image = ec2.register_image(name=image_name(number), description=f"Debian {number}")
    image.owner_id = DEBIAN_OWNER
    image.image_location = f"{DEBIAN_OWNER}/{image.name}"
    image.architecture = "x86_64"
    image.virtualization_type = "hvm"
    image.hypervisor = "xen"
    image.root_device_type = "ebs"
    image.root_device_name = "/dev/xvda"
    image.creation_date = PUBLISHED
    image.launch_permissions.append({"Group": "all"})
    return str(image.id)


def _alias(settings: Settings, ssm: Any, name: str, image_id: str) -> None:
    from moto.ssm.models import Parameter

    # The abstract methods that moto leaves to it are for CloudFormation.
    make: Any = Parameter
    ssm._parameters[name].append(
        make(
            account_id=settings.account,
            name=name,
            value=image_id,
            parameter_type="String",
            description="",
            allowed_pattern=None,
            keyid=None,
            last_modified_date=PUBLISHED,
            version=1,
            data_type="aws:ec2:image",
        )
    )


def _administrator(settings: Settings, iam: Any) -> None:
    """The lab's own key belongs to a user who may do everything, so that IAM can be enforced."""
    iam.create_user(region_name=settings.region, user_name=ADMINISTRATOR)
    iam.attach_user_policy("arn:aws:iam::aws:policy/AdministratorAccess", ADMINISTRATOR)
    key = iam.create_access_key(ADMINISTRATOR)
    iam.access_keys.pop(key.access_key_id, None)
    key.access_key_id, key.secret_access_key = settings.access_key, settings.secret_key
    iam.access_keys[key.access_key_id] = key
