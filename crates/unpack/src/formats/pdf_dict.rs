//! The dictionary before a PDF stream.

/// Dictionaries and arrays within each other.
const DEPTH_MAX: usize = 32;

/// A PDF object, as far as filters need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Without the slash, `#xx` resolved.
    Name(Vec<u8>),
    Number(i64),
    /// `12 0 R`.
    Reference,
    Array(Vec<Value>),
    Dict(Vec<(Vec<u8>, Value)>),
    /// Strings, booleans, null.
    Other,
}

impl Value {
    /// The value of one of `keys`; the last one counts.
    pub(super) fn lookup(&self, keys: &[&[u8]]) -> Option<&Value> {
        let Self::Dict(pairs) = self else {
            return None;
        };
        let pair = pairs
            .iter()
            .rev()
            .find(|(key, _)| keys.contains(&key.as_slice()));
        pair.map(|(_, value)| value)
    }

    /// A number that is no less than 0.
    pub(super) fn as_size(&self) -> Option<usize> {
        match self {
            Self::Number(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// The first dictionary in `bytes`. `None`: there is none, or it does not end.
pub(super) fn first(bytes: &[u8]) -> Option<Value> {
    let mut tokens = Tokens { bytes, at: 0 };
    match tokens.next()? {
        Token::DictOpen => tokens.dict(0),
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    DictOpen,
    DictClose,
    ArrayOpen,
    ArrayClose,
    Name(Vec<u8>),
    Number(i64),
    /// The keyword `R`.
    R,
    Other,
}

struct Tokens<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, 0 | b'\t' | b'\n' | b'\x0c' | b'\r' | b' ')
}

fn is_delimiter(byte: u8) -> bool {
    matches!(
        byte,
        b'(' | b')' | b'<' | b'>' | b'[' | b']' | b'{' | b'}' | b'/' | b'%'
    )
}

impl Tokens<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn skip_while(&mut self, accept: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&accept) {
            self.at += 1;
        }
    }

    fn next(&mut self) -> Option<Token> {
        self.skip_while(is_space);
        while self.peek(0) == Some(b'%') {
            self.skip_while(|b| b != b'\n' && b != b'\r');
            self.skip_while(is_space);
        }
        let (token, len) = match (self.peek(0)?, self.peek(1)) {
            (b'<', Some(b'<')) => (Token::DictOpen, 2),
            (b'>', Some(b'>')) => (Token::DictClose, 2),
            (b'[', _) => (Token::ArrayOpen, 1),
            (b']', _) => (Token::ArrayClose, 1),
            (b'<', _) => {
                self.skip_while(|b| b != b'>');
                (Token::Other, 1)
            }
            (b'(', _) => {
                self.skip_string();
                (Token::Other, 0)
            }
            (b'/', _) => {
                self.at += 1;
                let name = self.word();
                (Token::Name(unescaped(name)), 0)
            }
            (b')' | b'{' | b'}' | b'>', _) => (Token::Other, 1),
            _ => (keyword(self.word()), 0),
        };
        self.at += len;
        Some(token)
    }

    fn word(&mut self) -> &[u8] {
        let start = self.at;
        self.skip_while(|b| !is_space(b) && !is_delimiter(b));
        &self.bytes[start..self.at]
    }

    fn skip_string(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            match byte {
                b'\\' => self.at += 1,
                b'(' => depth += 1,
                b')' if depth == 1 => return,
                b')' => depth -= 1,
                _ => {}
            }
        }
    }

    /// The pairs up to `>>`.
    fn dict(&mut self, depth: usize) -> Option<Value> {
        let mut pairs = Vec::new();
        loop {
            match self.next()? {
                Token::DictClose => return Some(Value::Dict(pairs)),
                Token::Name(key) => {
                    let token = self.next()?;
                    if token == Token::DictClose {
                        return Some(Value::Dict(pairs));
                    }
                    pairs.push((key, self.value(token, depth + 1)?));
                }
                // Not a key: readers skip it.
                _ => {}
            }
        }
    }

    fn value(&mut self, token: Token, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        Some(match token {
            Token::DictOpen => self.dict(depth)?,
            Token::ArrayOpen => self.array(depth)?,
            Token::Name(name) => Value::Name(name),
            Token::Number(number) => self.number(number),
            _ => Value::Other,
        })
    }

    fn array(&mut self, depth: usize) -> Option<Value> {
        let mut values = Vec::new();
        loop {
            let token = self.next()?;
            if token == Token::ArrayClose {
                return Some(Value::Array(values));
            }
            values.push(self.value(token, depth + 1)?);
        }
    }

    /// A number, or the reference that it starts.
    fn number(&mut self, number: i64) -> Value {
        let after = self.at;
        if let (Some(Token::Number(_)), Some(Token::R)) = (self.next(), self.next()) {
            return Value::Reference;
        }
        self.at = after;
        Value::Number(number)
    }
}

fn keyword(word: &[u8]) -> Token {
    let number = str::from_utf8(word).ok().and_then(|word| word.parse().ok());
    match number {
        Some(number) => Token::Number(number),
        None if word == b"R" => Token::R,
        None => Token::Other,
    }
}

/// Resolves `#xx`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut at = 0;
    while let Some(&byte) = name.get(at) {
        let digits = name.get(at + 1..at + 3).filter(|_| byte == b'#');
        let code = digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(code.unwrap_or(byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries() {
        let dict = first(
            b" << /Length 12 0 R /Fil#74er [/A /B] % >>\n /S (a\\)(b>>)c) /H <3e3e> /N -3 \
              /D << /Columns 5 >> /T true>> stream",
        )
        .expect("it ends");
        assert_eq!(dict.lookup(&[b"Length"]), Some(&Value::Reference));
        let names = [b"A", b"B"].map(|n| Value::Name(n.to_vec()));
        assert_eq!(
            dict.lookup(&[b"F", b"Filter"]),
            Some(&Value::Array(names.to_vec()))
        );
        let inner = dict.lookup(&[b"D"]).and_then(|d| d.lookup(&[b"Columns"]));
        assert_eq!(inner.and_then(Value::as_size), Some(5));
        assert_eq!(dict.lookup(&[b"N"]).and_then(Value::as_size), None);
        assert_eq!(dict.lookup(&[b"T"]), Some(&Value::Other));
    }

    #[test]
    fn damage_has_an_end() {
        assert_eq!(first(b"<< /A"), None);
        assert_eq!(first(b"<< /A (never closed >>"), None);
        assert_eq!(first(b"12"), None);
        assert_eq!(first(&b"<</A".repeat(10_000)), None);
        assert_eq!(first(&b"[".repeat(10_000)), None);
    }
}
