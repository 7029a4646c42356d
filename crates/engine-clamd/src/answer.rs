//! What clamd's answers mean.

use proto::v1;

/// One answer to one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Clean,
    Found(String),
    /// Not (fully) scanned, and for people: why.
    Incomplete(v1::UnscannedReason, String),
    /// clamd itself has a problem.
    Error(String),
}

impl Answer {
    /// Reads `fd[10]: OK`, `fd[10]: NAME FOUND`, `fd[10]: REASON ERROR`. `None`: neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, text) = text.split_once(": ")?;
        if text == "OK" {
            return Some(Self::Clean);
        }
        if let Some(name) = text.strip_suffix(" FOUND") {
            return Some(Self::found(without_details(name)));
        }
        text.strip_suffix(" ERROR").map(Self::error)
    }

    /// Heuristics that are no detections: clamd says in this way what it could not look at.
    fn found(name: &str) -> Self {
        if let Some(limit) = name.strip_prefix("Heuristics.Limits.Exceeded") {
            let limit = limit.trim_start_matches('.');
            let reason = match limit {
                "MaxScanTime" => v1::UnscannedReason::EngineTimeout,
                _ => v1::UnscannedReason::EngineLimit,
            };
            return Self::Incomplete(reason, format!("clamd's limit {limit}"));
        }
        if name.starts_with("Heuristics.Encrypted") {
            return Self::Incomplete(v1::UnscannedReason::Encrypted, name.to_owned());
        }
        Self::Found(name.to_owned())
    }

    /// libclamav's words for what it could not do (`cl_strerror`).
    fn error(why: &str) -> Self {
        let incomplete = |reason| Self::Incomplete(reason, format!("clamd: {why}"));
        if why.contains("Time limit reached") {
            incomplete(v1::UnscannedReason::EngineTimeout)
        } else if why.contains("limit") || why.contains("CL_EMAX") {
            incomplete(v1::UnscannedReason::EngineLimit)
        } else {
            Self::Error(format!("clamd: {why}"))
        }
    }
}

/// The name without `(md5:size)`, which clamd adds with `ExtendedDetectionInfo`.
fn without_details(name: &str) -> &str {
    let Some((plain, details)) = name.strip_suffix(')').and_then(|n| n.rsplit_once('(')) else {
        return name;
    };
    let is_details = details.split_once(':').is_some_and(|(md5, size)| {
        md5.len() == 32
            && md5.bytes().all(|byte| byte.is_ascii_hexdigit())
            && size.bytes().all(|byte| byte.is_ascii_digit())
    });
    if is_details { plain } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::UnscannedReason;

    #[test]
    fn answers_mean_what_clamd_says() {
        let check = |text, expected| assert_eq!(Answer::parse(text), expected, "{text}");
        let found = |name: &str| Some(Answer::Found(name.to_owned()));
        let incomplete = |reason, detail: &str| Some(Answer::Incomplete(reason, detail.to_owned()));
        check("fd[10]: OK", Some(Answer::Clean));
        check("fd[10]: Eicar FOUND", found("Eicar"));
        check(
            "fd[10]: Eicar(aa15bcf478d165efd2065190eb473bcb:544) FOUND",
            found("Eicar"),
        );
        check(
            "fd[10]: A(b:c).UNOFFICIAL FOUND",
            found("A(b:c).UNOFFICIAL"),
        );
        check("fd[10]: A(b) FOUND", found("A(b)"));
        check(
            "fd[10]: Heuristics.Limits.Exceeded.MaxFileSize FOUND",
            incomplete(UnscannedReason::EngineLimit, "clamd's limit MaxFileSize"),
        );
        check(
            "fd[10]: Heuristics.Limits.Exceeded.MaxScanTime FOUND",
            incomplete(UnscannedReason::EngineTimeout, "clamd's limit MaxScanTime"),
        );
        check(
            "fd[10]: Heuristics.Encrypted.Zip FOUND",
            incomplete(UnscannedReason::Encrypted, "Heuristics.Encrypted.Zip"),
        );
        check(
            "fd[10]: Heuristics.Phishing.X FOUND",
            found("Heuristics.Phishing.X"),
        );
        check(
            "fd[10]: Time limit reached ERROR",
            incomplete(UnscannedReason::EngineTimeout, "clamd: Time limit reached"),
        );
        check(
            "fd[10]: Can't allocate memory ERROR",
            Some(Answer::Error("clamd: Can't allocate memory".to_owned())),
        );
        for text in ["", "OK", "fd[10]: ", "fd[10]: FOUND", "fd[10]: whatever"] {
            check(text, None);
        }
    }
}
