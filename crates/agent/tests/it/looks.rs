//! What a puppet has agents look for, and what it hears of that.

use std::path::PathBuf;

use literal_filter::{Filter, Literal, Needle, NeedleToken, Needles, Pack};
use proto::v1;

/// Bytes of a piece of a filter: small, so that there are several.
const PIECE: usize = 500;

#[derive(Default)]
pub(crate) struct Looks {
    /// The pack that is offered.
    pub(crate) offered: Option<Vec<u8>>,
    /// Those before.
    pub(crate) before: Vec<Vec<u8>>,
    /// Questions for pieces.
    pub(crate) fetches: Vec<v1::FetchFilter>,
    /// What is sent is damaged.
    pub(crate) tampers: bool,
    /// Reports with their checks.
    pub(crate) reports: Vec<(v1::Check, v1::FilterReport)>,
    /// Reports are asked for, whatever comes along.
    pub(crate) insists: bool,
    /// What to ask for because of a report; nothing: it will do.
    pub(crate) asks: Vec<v1::ByteRange>,
    /// What came of that.
    pub(crate) ranges: Vec<(u64, Vec<u8>)>,
    /// Why there was no data.
    pub(crate) failed: Vec<v1::UnscannedReason>,
    /// Writes this before it asks for the next report, or for ranges.
    pub(crate) before_report: Option<(PathBuf, Vec<u8>)>,
    pub(crate) before_ranges: Option<(PathBuf, Vec<u8>)>,
}

impl Looks {
    /// Offers another pack.
    pub(crate) fn offer(&mut self, pack: Option<Vec<u8>>) -> v1::FilterOffer {
        let old = std::mem::replace(&mut self.offered, pack);
        self.before.extend(old);
        self.offer_again()
    }

    pub(crate) fn offer_again(&self) -> v1::FilterOffer {
        let offered = self.offered.as_ref();
        v1::FilterOffer {
            filter: offered.map_or_else(Vec::new, |pack| Pack::id_of(pack).to_vec()),
            size: offered.map_or(0, |pack| pack.len() as u64),
        }
    }

    pub(crate) fn part(&mut self, fetch: v1::FetchFilter) -> v1::FilterPart {
        let base = self
            .before
            .iter()
            .find(|old| Pack::id_of(old)[..] == fetch.base[..]);
        let offered = self.offered.as_ref();
        let offered = offered.filter(|pack| Pack::id_of(pack)[..] == fetch.filter[..]);
        let against = base.map_or(&[][..], Vec::as_slice);
        let mut whole =
            offered.map_or_else(Vec::new, |pack| chunks::compress_against(against, pack));
        if self.tampers && !whole.is_empty() {
            let middle = whole.len() / 2;
            whole[middle] ^= 1;
        }
        let from = whole.len().min(fetch.offset as usize);
        let to = whole.len().min(from + PIECE);
        let part = v1::FilterPart {
            filter: fetch.filter.clone(),
            offset: fetch.offset,
            bytes: whole[from..to].to_vec().into(),
            base: base.map_or_else(Vec::new, |pack| Pack::id_of(pack).to_vec()),
            total: whole.len() as u64,
        };
        self.fetches.push(fetch);
        part
    }

    /// How often this pack was begun to be fetched.
    pub(crate) fn begun(&self, pack: &[u8]) -> usize {
        let id = Pack::id_of(pack);
        let begun = |fetch: &&v1::FetchFilter| fetch.offset == 0 && fetch.filter == id;
        self.fetches.iter().filter(begun).count()
    }
}

/// Literals that nothing else has, the given ones, and a needle: `Nd`, four bytes, `le`.
pub(crate) fn pack(seed: u8, more: &[&[u8]]) -> Vec<u8> {
    let mut random = vec![0; 6000];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let one = |bytes: &[u8]| Literal {
        bytes: bytes.to_vec(),
        nocase: false,
    };
    let mut literals: Vec<_> = random.chunks(20).map(one).collect();
    literals.push(one(&[seed; 16]));
    literals.extend(more.iter().map(|bytes| one(bytes)));
    let byte = |value| NeedleToken::Byte { value, mask: 0xff };
    let gap = NeedleToken::Gap { least: 4, most: 4 };
    let tokens = vec![byte(b'N'), byte(b'd'), gap, byte(b'l'), byte(b'e')];
    let needle = Needle::new(tokens, 0).unwrap();
    let needles = Needles::build(vec![needle]).unwrap();
    Pack::write(&Filter::build(&literals).unwrap(), &needles)
}
