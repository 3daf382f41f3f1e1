"""Requests and responses of the HTTP interface as msgspec structures."""
