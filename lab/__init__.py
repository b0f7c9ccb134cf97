"""The lab: AWS rehearsed on this machine, an EC2-compatible API with a real host behind every instance."""
