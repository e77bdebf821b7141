# Copy to terraform.tfvars and change each line. What they mean, and all others: variables.tf.

region         = "eu-central-1"
domain         = "ratchet.example.com"
allowed_cidrs  = ["203.0.113.0/24"] # your office, your VPN
image_registry = "ghcr.io/you"
image_tag      = "v1.0.0"
repository_url = "https://github.com/you/ratchet"
