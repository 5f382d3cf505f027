"""From the YAML file to `model.Config`, with every problem named."""
