"""Older place of `helpers.names`."""

from maest.helpers.names import check_choice, did_you_mean, listed, listed_names, typed_list

__all__ = ["check_choice", "did_you_mean", "listed", "listed_names", "typed_list"]
