"""Backbones and their registry, projector, batch norm over processes, files of weights."""

from duality_ssl.networks.backbones import create_backbone, register_backbone

__all__ = ["create_backbone", "register_backbone"]
