"""The HTTP interface of a hive, one blueprint per resource."""
