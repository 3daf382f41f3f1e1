"""The only package a plug-in imports: data types and abstract interfaces, no behaviour of the host."""
