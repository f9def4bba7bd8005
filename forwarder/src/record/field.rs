//! The fields that a record can have: AWS's by the version that brought them, and forwarder's own.
//!
//! Source: AWS, "Flow log records" and "Transit gateway" excluded: those fields are of another resource. A field that does not
//! apply here is known all the same and prints `-`, so that a format taken over from AWS works as it is.

/// What a field's values are, for formats with types. The names of the variants are Parquet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// A number of 32 bits.
    Int32,
    /// A number of 64 bits.
    Int64,
}

/// `version` of forwarder's own fields: they do not raise a record's.
pub const OWN: u32 = 0;

macro_rules! fields {
    ($($variant:ident $name:literal $version:tt $kind:ident $text:literal)*) => {
        /// One field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Field { $(#[doc = $text] $variant),* }

        impl Field {
            /// All of them: AWS's in their order, then the own ones.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// As a format names it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The version that brought it; [`OWN`] for forwarder's.
            pub const fn version(self) -> u32 {
                match self { $(Self::$variant => $version),* }
            }

            /// What its values are.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),* }
            }
        }
    };
}

fields! {
    Version "version" 2 Int32 "Highest version among the record's fields."
    AccountId "account-id" 2 String "Owner of the interface."
    InterfaceId "interface-id" 2 String "The interface."
    SrcAddr "srcaddr" 2 String "Source; leaving, the interface's own primary address."
    DstAddr "dstaddr" 2 String "Destination; entering, the interface's own primary address."
    SrcPort "srcport" 2 Int32 "Source port, 0 without ports."
    DstPort "dstport" 2 Int32 "Destination port, 0 without ports."
    Protocol "protocol" 2 Int32 "IANA's number."
    Packets "packets" 2 Int64 "Packets in the window."
    Bytes "bytes" 2 Int64 "Bytes of IP packet in the window."
    Start "start" 2 Int64 "First packet, seconds since 1970."
    End "end" 2 Int64 "Last packet, seconds since 1970."
    Action "action" 2 String "ACCEPT or REJECT."
    LogStatus "log-status" 2 String "OK, NODATA or SKIPDATA."
    VpcId "vpc-id" 3 String "The interface's VPC."
    SubnetId "subnet-id" 3 String "The interface's subnet."
    InstanceId "instance-id" 3 String "The instance."
    TcpFlags "tcp-flags" 3 Int32 "FIN 1, SYN 2, RST 4, SYN-ACK 18, ORed over the window."
    Type "type" 3 String "IPv4 or IPv6."
    PktSrcAddr "pkt-srcaddr" 3 String "Source in the packet."
    PktDstAddr "pkt-dstaddr" 3 String "Destination in the packet."
    Region "region" 4 String "Region."
    AzId "az-id" 4 String "Availability zone."
    SublocationType "sublocation-type" 4 String "Not known here."
    SublocationId "sublocation-id" 4 String "Not known here."
    PktSrcAwsService "pkt-src-aws-service" 5 String "Not known here."
    PktDstAwsService "pkt-dst-aws-service" 5 String "Not known here."
    FlowDirection "flow-direction" 5 String "ingress or egress, seen from the interface."
    TrafficPath "traffic-path" 5 Int32 "Not known here."
    EcsClusterArn "ecs-cluster-arn" 7 String "Does not apply."
    EcsClusterName "ecs-cluster-name" 7 String "Does not apply."
    EcsContainerInstanceArn "ecs-container-instance-arn" 7 String "Does not apply."
    EcsContainerInstanceId "ecs-container-instance-id" 7 String "Does not apply."
    EcsContainerId "ecs-container-id" 7 String "Does not apply."
    EcsSecondContainerId "ecs-second-container-id" 7 String "Does not apply."
    EcsServiceName "ecs-service-name" 7 String "Does not apply."
    EcsTaskDefinitionArn "ecs-task-definition-arn" 7 String "Does not apply."
    EcsTaskArn "ecs-task-arn" 7 String "Does not apply."
    EcsTaskId "ecs-task-id" 7 String "Does not apply."
    RejectReason "reject-reason" 8 String "AWS's own reasons, which are not ours; see drop-reason."
    ResourceId "resource-id" 9 String "Does not apply."
    EncryptionStatus "encryption-status" 10 Int32 "Not known here."
    InstanceTag "instance-tag" 11 String "Not known here."
    InstanceTag2 "instance-tag-2" 11 String "Not known here."
    InterfaceTag "interface-tag" 11 String "Not known here."
    InterfaceTag2 "interface-tag-2" 11 String "Not known here."
    AsgTag "asg-tag" 11 String "Not known here."
    AsgTag2 "asg-tag-2" 11 String "Not known here."
    InterfaceType "interface-type" 11 String "Not known here."
    NextHopInterfaceId "next-hop-interface-id" 11 String "Not known here."
    NextHopSubnetId "next-hop-subnet-id" 11 String "Not known here."
    NextHopAzId "next-hop-az-id" 11 String "Not known here."
    NextHopVpcId "next-hop-vpc-id" 11 String "Not known here."
    NextHopInterfaceType "next-hop-interface-type" 11 String "Not known here."

    InterfaceName "interface-name" OWN String "Name of the interface on the host."
    ForwarderDirection "forwarder-direction" OWN String "outbound, inbound, internal or external: between which sides."
    InitiatedBy "initiated-by" OWN String "source or destination: which of them began the connection."
    OrigSrcAddr "orig-srcaddr" OWN String "Source before translation."
    OrigSrcPort "orig-srcport" OWN Int32 "Source port before translation."
    OrigDstAddr "orig-dstaddr" OWN String "Destination before translation."
    OrigDstPort "orig-dstport" OWN Int32 "Destination port before translation."
    NatSrcAddr "nat-srcaddr" OWN String "Source after translation; `-` without."
    NatSrcPort "nat-srcport" OWN Int32 "Source port after translation; `-` without."
    NatDstAddr "nat-dstaddr" OWN String "Destination after translation; `-` without."
    NatDstPort "nat-dstport" OWN Int32 "Destination port after translation; `-` without."
    RuleName "rule-name" OWN String "Rule that admitted or refused it; `-` for a default."
    DropReason "drop-reason" OWN String "Why it was refused, as in `forwarder status`."
    FlowDuration "flow-duration" OWN Int64 "Milliseconds from the connection's beginning to this direction's last packet."
    RttSrc "rtt-src" OWN Int32 "Round trip between here and the source in the TCP handshake, microseconds."
    RttDst "rtt-dst" OWN Int32 "Round trip between here and the destination in the TCP handshake, microseconds."
}

impl Field {
    /// The fields of version 2 in AWS's default order.
    pub const DEFAULT: &'static [Self] = &[
        Self::Version,
        Self::AccountId,
        Self::InterfaceId,
        Self::SrcAddr,
        Self::DstAddr,
        Self::SrcPort,
        Self::DstPort,
        Self::Protocol,
        Self::Packets,
        Self::Bytes,
        Self::Start,
        Self::End,
        Self::Action,
        Self::LogStatus,
    ];

    /// The field with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_as_many_fields_as_aws_says() {
        let up_to = |version| Field::ALL.iter().filter(|field| (2..=version).contains(&field.version())).count();
        assert_eq!([2, 3, 4, 5, 7, 8, 9, 10, 11].map(up_to), [14, 21, 25, 29, 39, 40, 41, 42, 54]);
        assert_eq!(Field::DEFAULT, &Field::ALL[..14]);
    }

    #[test]
    fn names_are_unique() {
        for field in Field::ALL {
            assert_eq!(Field::named(field.name()), Some(*field));
        }
    }
}
