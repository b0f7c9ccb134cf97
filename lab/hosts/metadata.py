"""The instance metadata service: version 2 (and 1 where an instance permits it), answered by who asks.

Each VPC's router listens on 169.254.169.254; the far end of a connection there is an instance's private address, which
says whose metadata to show. Nothing is kept: every answer is made from the world as it is now.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from lab.hosts.containers import domain, private_name
from lab.world import Instance, Network

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LONGEST_TTL: Final = 21600  # seconds, six hours, as on AWS
TOKEN_HEADER: Final = "HTTP_X_AWS_EC2_METADATA_TOKEN"  # noqa: S105 - the name of a header
TTL_HEADER: Final = "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"
VERSION: Final = re.compile(r"^/(latest|\d{4}-\d\d-\d\d|1\.0)(/|$)")
STATUS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Not Allowed",
}

Tree = Mapping[str, "str | Tree"]
Answer = tuple[int, str, dict[str, str]]


def _now(offset: float = 0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + offset))


class MetadataApp:
    """WSGI application that answers the instances of one VPC.

    Args:
        find: gives the instance at a private address of the VPC, and its network; None for a stranger.
        credentials: gives the temporary credentials of an instance profile.
        account: account id.
        region: region name.
    """

    def __init__(
        self,
        find: Callable[[str], tuple[Instance, Network] | None],
        credentials: Callable[[str], Mapping[str, Any]],
        account: str,
        region: str,
    ) -> None:
        self._find = find
        self._credentials = credentials
        self._account = account
        self._region = region
        self._tokens: dict[str, tuple[str, float]] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        status, text, headers = self._answer(environ)
        body = text.encode()
        start_response(
            f"{status} {STATUS[status]}",
            [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers.items()],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        path, method, peer = environ.get("PATH_INFO", "/"), environ["REQUEST_METHOD"], environ.get("REMOTE_ADDR", "")
        found = self._find(peer)
        if found is None:
            return 404, "", {}
        if method == "PUT" and path == "/latest/api/token":
            return self._issue(environ, peer)
        if method not in ("GET", "HEAD"):
            return 405, "", {}
        instance, network = found
        token = environ.get(TOKEN_HEADER)
        if token is None:
            if instance.imds_tokens == "required":
                return 401, "", {}
        elif not self._valid(token, peer):
            return 401, "", {}
        return self._look_up(path, instance, network)

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _issue(self, environ: WSGIEnvironment, peer: str) -> Answer:
        if "HTTP_X_FORWARDED_FOR" in environ:  # AWS's guard against open proxies on an instance
            return 403, "", {}
        wish = environ.get(TTL_HEADER, "")
        if not wish.isdigit() or not 1 <= int(wish) <= LONGEST_TTL:
            return 400, "", {}
        now = time.monotonic()
        self._tokens = {token: kept for token, kept in self._tokens.items() if kept[1] > now}
        token = secrets.token_urlsafe(40)
        self._tokens[token] = (peer, now + int(wish))
        return 200, token, {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": wish}

    def _valid(self, token: str, peer: str) -> bool:
        owner, end = self._tokens.get(token, ("", 0.0))
        return owner == peer and time.monotonic() < end

    # --- what there is -----------------------------------------------------------------------------------------------

    def _look_up(self, path: str, instance: Instance, network: Network) -> Answer:
        if path in ("", "/"):
            return 200, "latest", {}
        version = VERSION.match(path)
        if not version:
            return 404, "", {}
        words = [word for word in path[version.end() :].split("/") if word]
        node: str | Tree = self._tree(instance, network, with_credentials="iam" in words)
        for word in words:
            if not isinstance(node, Mapping) or word not in node:
                return 404, "", {}
            node = node[word]
        if isinstance(node, str):
            return 200, node, {}
        if words[-1:] == ["public-keys"]:
            return 200, f"0={instance.key_name}", {}
        names = [name if isinstance(below, str) else f"{name}/" for name, below in node.items()]
        return 200, "\n".join(names), {}

    def _tree(self, instance: Instance, network: Network, *, with_credentials: bool) -> Tree:
        metadata = self._metadata(instance, network)
        if instance.profile:
            # Credentials are made when they are asked for, not whenever anything else is.
            metadata["iam"] = self._iam(instance.profile) if with_credentials else {}
        tree: dict[str, str | Tree] = {
            "meta-data": metadata,
            "dynamic": {"instance-identity": {"document": self._document(instance)}},
        }
        if instance.user_data is not None:
            tree["user-data"] = instance.user_data
        return tree

    def _metadata(self, instance: Instance, network: Network) -> dict[str, str | Tree]:
        local_name = f"{private_name(instance)}.{domain(self._region)}"
        subnet = next((one for one in network.subnets if one.id == instance.subnet_id), None)
        interface: dict[str, str | Tree] = {
            "device-number": "0",
            "local-hostname": local_name,
            "local-ipv4s": instance.private_ip,
            "mac": instance.mac,
            "owner-id": self._account,
            "security-groups": "\n".join(instance.groups),
            "subnet-id": instance.subnet_id,
            "subnet-ipv4-cidr-block": subnet.cidr if subnet else "",
            "vpc-id": instance.vpc_id,
            "vpc-ipv4-cidr-block": network.cidr,
        }
        tree: dict[str, str | Tree] = {
            "ami-id": f"ami-{instance.image}",
            "hostname": local_name,
            "instance-action": "none",
            "instance-id": instance.id,
            "instance-life-cycle": instance.market,
            "instance-type": instance.instance_type,
            "local-hostname": local_name,
            "local-ipv4": instance.private_ip,
            "mac": instance.mac,
            "network": {"interfaces": {"macs": {instance.mac: interface}}},
            "placement": {"availability-zone": instance.availability_zone, "region": self._region},
            "security-groups": "\n".join(instance.groups),
            "services": {"domain": "amazonaws.com", "partition": "aws"},
        }
        if instance.spot_notice:
            tree["spot"] = {"instance-action": instance.spot_notice}
        if instance.public_ip:
            public_name = f"ec2-{instance.public_ip.replace('.', '-')}.compute-1.amazonaws.com"
            tree |= {"public-ipv4": instance.public_ip, "public-hostname": public_name}
            interface |= {"public-ipv4s": instance.public_ip, "public-hostname": public_name}
        if instance.authorized_key:
            tree["public-keys"] = {"0": {"openssh-key": instance.authorized_key}}
        return tree

    def _iam(self, profile: str) -> Tree:
        given = self._credentials(profile)
        role = str(given.get("RoleName") or profile)
        info = {
            "Code": "Success",
            "LastUpdated": _now(),
            "InstanceProfileArn": f"arn:aws:iam::{self._account}:instance-profile/{profile}",
            "InstanceProfileId": f"AIPA{profile.upper()}",
        }
        expiration = given.get("Expiration") or _now(LONGEST_TTL)
        shown = {
            "Code": "Success",
            "LastUpdated": _now(),
            "Type": "AWS-HMAC",
            "AccessKeyId": given["AccessKeyId"],
            "SecretAccessKey": given["SecretAccessKey"],
            "Token": given.get("Token") or given.get("SessionToken") or "",
            "Expiration": expiration if isinstance(expiration, str) else expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return {"info": json.dumps(info), "security-credentials": {role: json.dumps(shown)}}

    def _document(self, instance: Instance) -> str:
        document = {
            "accountId": self._account,
            "architecture": "x86_64",
            "availabilityZone": instance.availability_zone,
            "imageId": f"ami-{instance.image}",
            "instanceId": instance.id,
            "instanceType": instance.instance_type,
            "pendingTime": instance.launch_time,
            "privateIp": instance.private_ip,
            "region": self._region,
            "version": "2017-09-30",
        }
        return json.dumps(document, indent=2)
