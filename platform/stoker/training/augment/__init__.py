"""What changes pixels and labels on the device: operations, mixing, erasing."""
