//! Identifiers of 16 bytes, each its own type.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads an id from exactly 16 bytes; `None` for any other length.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Reads 32 hexadecimal digits.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                crate::digest::decode_hex::<16>(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                crate::digest::write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

id! {
    /// A guest, named by the controller at enrolment and carried in its certificate.
    GuestId
}
id! {
    /// A version of what judges: engines and their rules. Equal bytes mean equal judgement.
    Generation
}
id! {
    /// What an agent looks for in place of an engine: equal bytes, equal literals and needles.
    FilterId
}
id! {
    /// A removal order, unique for each appliance.
    OrderId
}
id! {
    /// An item in a guest's quarantine.
    ItemId
}

id! {
    /// One opening of a hypervisor's channel between a guest and the appliance on its host.
    ChannelId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip() {
        let id = GuestId([0xab; 16]);
        assert_eq!(GuestId::from_hex(&id.to_string()), Some(id));
        assert_eq!(GuestId::from_hex("ab"), None);
        assert_eq!(GuestId::from_slice(&[0; 15]), None);
    }
}
