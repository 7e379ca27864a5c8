"""Tests of searches on several machines."""
