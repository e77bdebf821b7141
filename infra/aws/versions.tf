# Ratchet on AWS: one GPU host, RDS PostgreSQL, S3. How to use it: README.md.

terraform {
  required_version = ">= 1.11" # write-only arguments: the secrets stay out of the state

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = merge({ Project = var.name }, var.tags)
  }
}

# The same, for what is ephemeral: mock providers do not know it, and so the tests mock the other one only.
provider "aws" {
  alias  = "ephemeral"
  region = var.region
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
}
