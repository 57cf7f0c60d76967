"""Admission: a pod and its decision written into it."""
