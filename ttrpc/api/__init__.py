"""The agreement between shim, daemon and clients: our .proto files and the classes made from them."""
