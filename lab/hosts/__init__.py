"""The lab's hosts: their image, networks, firewalls, containers and metadata."""
