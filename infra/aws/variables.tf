# What one must give comes first; everything else has a default that suits production.

variable "region" {
  description = "AWS region, for example eu-central-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be the name of an AWS region, for example eu-central-1 (and no zone, such as eu-central-1a)."
  }
}

variable "domain" {
  description = "Name under which the platform is reached. Point its DNS record at the output `address`."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.domain))
    error_message = "domain must be a host name in lower case, for example ratchet.example.com: no https://, no port, no path."
  }
}

variable "allowed_cidrs" {
  description = "IPv4 ranges that may reach port 443, for example your office and your VPN. There is no other open port."
  type        = list(string)

  validation {
    condition     = length(var.allowed_cidrs) > 0 && alltrue([for cidr in var.allowed_cidrs : can(cidrnetmask(cidr))])
    error_message = "allowed_cidrs must hold at least one IPv4 range, for example [\"203.0.113.0/24\"]; one address is written with /32."
  }
}

variable "image_registry" {
  description = "Where the images are, for example ghcr.io/you: the host pulls IMAGE_REGISTRY/ratchet-tracking and its sisters."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9.:-]+(/[a-z0-9._-]+)*/?$", var.image_registry))
    error_message = "image_registry must be a registry and perhaps a path, in lower case, for example ghcr.io/you: no https://, no image name, no tag."
  }
}

variable "image_tag" {
  description = "Tag of the images to start with. Later versions come by a deployment (README.md), and not by Terraform."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "image_tag must name one version, for example v1.2.0, and not latest, which is another image tomorrow."
  }
}

variable "repository_url" {
  description = "Git repository that the host checks out to /opt/ratchet. It must be readable without a login."
  type        = string

  validation {
    condition     = can(regex("^https://[^@ ']+$", var.repository_url))
    error_message = "repository_url must begin with https:// and hold no login, for example https://github.com/you/ratchet."
  }
}

# The platform

variable "repository_ref" {
  description = "Branch, tag or commit to check out. null: what image_tag says, so that code and images are of one version."
  type        = string
  default     = null

  validation {
    condition     = var.repository_ref == null || can(regex("^[A-Za-z0-9][A-Za-z0-9_./-]*$", var.repository_ref))
    error_message = "repository_ref must be a branch, a tag or a commit, for example v1.2.0."
  }
}

variable "name" {
  description = "Name of everything made here, and the prefix of the secrets' names. Another name makes another platform."
  type        = string
  default     = "ratchet"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9]|-[a-z0-9]){1,23}$", var.name))
    error_message = "name must have 2 to 24 or so lower-case letters, digits and single hyphens, beginning with a letter: it becomes part of a bucket's and a database's name."
  }
}

variable "tags" {
  description = "Tags for everything made here, besides Project."
  type        = map(string)
  default     = {}
}

variable "edge_tls" {
  description = "What Caddy's `tls` takes: `internal` for a CA of its own, or an e-mail address for Let's Encrypt, which must reach port 443: allowed_cidrs = [\"0.0.0.0/0\"]."
  type        = string
  default     = "internal"

  validation {
    condition     = can(regex("^(internal|[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+)$", var.edge_tls))
    error_message = "edge_tls must be `internal` or an e-mail address."
  }
}

variable "gpu" {
  description = "Whether trainer and serving run on the NVIDIA runtime. false: choose an instance_type without a GPU as well."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Whether AWS refuses to delete the database and the host. Set it to false, and apply, before a tear-down."
  type        = bool
  default     = true
}

# The host

variable "instance_type" {
  description = "EC2 instance type, x86-64. The default has one A10G with 24 GB."
  type        = string
  default     = "g5.xlarge"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", var.instance_type)) && !can(regex("^[a-z]+[0-9]g[a-z]*\\.", var.instance_type))
    error_message = "instance_type must be an x86-64 EC2 instance type, for example g5.xlarge; the images are not built for Graviton (g5g, m7g and the like)."
  }
}

variable "ami_parameter" {
  description = "SSM public parameter with the AMI's id. The default is Ubuntu 22.04 with NVIDIA's driver and Docker; without a GPU, /aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id does."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
}

variable "ami_id" {
  description = "AMI in place of that of ami_parameter: Ubuntu, x86-64, with NVIDIA's driver where gpu is true."
  type        = string
  default     = null

  validation {
    condition     = var.ami_id == null || can(regex("^ami-[0-9a-f]+$", var.ami_id))
    error_message = "ami_id must be like ami-0123456789abcdef0, or null."
  }
}

variable "disk_gb" {
  description = "Size of the host's disk, in GB: images, base models, checkpoints."
  type        = number
  default     = 200

  validation {
    condition     = var.disk_gb >= 100
    error_message = "disk_gb must be at least 100: the AMI and the images alone take more than half of that."
  }
}

# The network

variable "existing_subnets" {
  description = "A network that is there already, in place of a new VPC. The host's subnet needs a route to an internet gateway, the database's subnets two zones."
  type = object({
    vpc_id              = string
    host_subnet_id      = string
    database_subnet_ids = list(string)
  })
  default = null

  validation {
    condition     = try(length(distinct(var.existing_subnets.database_subnet_ids)) >= 2, var.existing_subnets == null)
    error_message = "existing_subnets.database_subnet_ids must name at least two subnets, in two availability zones: RDS demands it."
  }
}

variable "vpc_cidr" {
  description = "IPv4 range of the new VPC. Unused with existing_subnets."
  type        = string
  default     = "10.60.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.vpc_cidr)) && try(tonumber(split("/", var.vpc_cidr)[1]) <= 22 && tonumber(split("/", var.vpc_cidr)[1]) >= 16, false)
    error_message = "vpc_cidr must be an IPv4 range from /16 to /22, for example 10.60.0.0/16."
  }
}

variable "host_zone" {
  description = "In which of the new VPC's two availability zones the host stands: 0, or 1 where the first has no capacity left."
  type        = number
  default     = 0

  validation {
    condition     = contains([0, 1], var.host_zone)
    error_message = "host_zone must be 0 or 1."
  }
}

# The database

variable "database_class" {
  description = "RDS instance class."
  type        = string
  default     = "db.t4g.medium"

  validation {
    condition     = startswith(var.database_class, "db.")
    error_message = "database_class must begin with db., for example db.t4g.medium."
  }
}

variable "database_gb" {
  description = "Storage that the database begins with, in GB. It grows by itself, up to ten times that."
  type        = number
  default     = 50

  validation {
    condition     = var.database_gb >= 20
    error_message = "database_gb must be at least 20, the least that RDS takes for gp3."
  }
}

variable "multi_az" {
  description = "Whether a second database stands by in another zone. false halves the database's price; a failure of its zone then stops the platform."
  type        = bool
  default     = true
}

variable "tracking_connections" {
  description = "Connections to the database that the tracking server may hold in all. db.t4g.medium takes about 400."
  type        = number
  default     = 180

  validation {
    condition     = var.tracking_connections >= 120 && floor(var.tracking_connections) == var.tracking_connections
    error_message = "tracking_connections must be a whole number, at least 120: 10 for each of tracking's 12 pools."
  }
}

# Storage, logs, secrets

variable "bucket_name" {
  description = "Name of the bucket for artifacts. null: NAME-ACCOUNT-REGION."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null || can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name must have 3 to 63 lower-case letters, digits and hyphens; a dot would break TLS."
  }
}

variable "noncurrent_days" {
  description = "Days for which a deleted or overwritten artifact can be brought back."
  type        = number
  default     = 90

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "noncurrent_days must be at least 1."
  }
}

variable "access_logs_bucket" {
  description = "A bucket of yours that takes S3's access logs, in this region and account. null: none are written."
  type        = string
  default     = null
}

variable "log_days" {
  description = "Days for which the database's logs and the network's flow logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_days)
    error_message = "log_days must be one of CloudWatch's periods: 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, and so on up to 3653."
  }
}

variable "secrets_version" {
  description = "Raise it by one for new values of the secret key and of the parts' passwords; then run start.sh (README.md). 0 makes the entries without values, for somebody else to fill in."
  type        = number
  default     = 1

  validation {
    condition     = var.secrets_version >= 0 && floor(var.secrets_version) == var.secrets_version
    error_message = "secrets_version must be a whole number: 1, then 2 for new values, and so on."
  }
}

# Who else may do something

variable "garbage_collectors" {
  description = "ARNs of the users or roles that may assume the role NAME-gc, which deletes artifacts. Empty: no such role is made."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.garbage_collectors : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(user|role)/.+$", arn))])
    error_message = "garbage_collectors must hold ARNs of IAM users or roles, for example arn:aws:iam::123456789012:role/operator; a whole account (root) or * would be too many."
  }
}

variable "github_repository" {
  description = "GitHub repository whose workflows may deploy, as owner/name. They become root on the host. null: none."
  type        = string
  default     = null

  validation {
    condition     = var.github_repository == null || can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository must be owner/name, for example you/ratchet: no https://github.com/, no *."
  }
}

variable "github_environment" {
  description = "GitHub environment in which a deploying job must run. Guard it there, with reviewers and a branch rule."
  type        = string
  default     = "production"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+$", var.github_environment))
    error_message = "github_environment must be the name of one environment, with letters, digits, _ and - only."
  }
}

variable "github_oidc_provider_arn" {
  description = "The account's identity provider for GitHub, of which there can be one only. null: it is made here."
  type        = string
  default     = null

  validation {
    condition     = var.github_oidc_provider_arn == null || can(regex(":oidc-provider/token\\.actions\\.githubusercontent\\.com$", var.github_oidc_provider_arn))
    error_message = "github_oidc_provider_arn must end in :oidc-provider/token.actions.githubusercontent.com."
  }
}
