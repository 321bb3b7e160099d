//! `.env`, which feeder and consumer read alike: what it cannot be read for, and names in it that are misspelt.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use strsim::osa_distance;

/// Every setting, of both programs: a test holds them to this.
const SAMPLES: [&str; 2] = [
    include_str!("../../../../feeder/env.sample"),
    include_str!("../../../../consumer/env.sample"),
];

/// Nearly settings, but others': of `docker-compose.yml`, and of the SDK for each service.
const OTHERS: [&str; 2] = ["STATUS_PORT", "AWS_ENDPOINT_URL"];

const MAX_TYPOS: usize = 2;

/// Sets what the file of the working directory has, and the environment has not. Returns a warning for each name that
/// is nearly a setting. One of a folder above is another project's, and a folder of that name is none.
pub fn read_dotenv() -> anyhow::Result<Vec<String>> {
    let file = Path::new(".env");
    let mut text = match std::fs::read(file) {
        Err(error) if error.kind() == ErrorKind::NotFound || file.is_dir() => return Ok(vec![]),
        text => text.map_err(|error| anyhow::anyhow!(".env: {error}"))?,
    };
    // No variable can hold one: to set it would be a panic that prints the value.
    if text.contains(&0) {
        anyhow::bail!(".env: a NUL byte is in it: save it as UTF-8 text");
    }
    // Spaces after a last line without an end would be an error.
    text.push(b'\n');
    dotenvy::from_read(&*text)
        .map_err(|error| anyhow::anyhow!(".env: {}", describe_error(&error)))?;
    let misspelt = misspelt_names(&text).into_iter();
    let warning = |(name, known)| format!(".env: {name} is no setting: is {known} meant?");
    Ok(misspelt.map(warning).collect())
}

/// Why it cannot be read, without the line at fault: it may hold a password.
fn describe_error(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(line, _) => format!(
            "a line cannot be read, that of {}: quote a value that holds a space, # or $ with '",
            line.split_once('=')
                .map_or("no NAME=value", |(name, _)| name.trim())
        ),
        other => other.to_string(),
    }
}

fn known_names() -> impl Iterator<Item = &'static str> {
    let lines = SAMPLES.iter().flat_map(|sample| sample.lines());
    let names = lines.filter_map(|line| Some(line.trim_start_matches('#').split_once('=')?.0));
    names.filter(|name| !name.contains(|c: char| c.is_ascii_lowercase() || c == ' '))
}

/// With the setting that each is nearest to.
fn misspelt_names(text: &[u8]) -> BTreeMap<String, &'static str> {
    let names = dotenvy::from_read_iter(text)
        .flatten()
        .map(|(name, _)| name);
    let nearest = |name: String| {
        if known_names().any(|known| known == name) || OTHERS.iter().any(|of| name.starts_with(of))
        {
            return None;
        }
        let upper = name.to_ascii_uppercase();
        let typos = known_names().filter_map(|known| Some((count_typos(&upper, known)?, known)));
        let (typos, known) = typos.min()?;
        // Of a short name a few other letters make another word.
        (typos <= MAX_TYPOS.min(known.len() / 4)).then_some((name, known))
    };
    names.filter_map(nearest).collect()
}

/// None where a whole word is another.
fn count_typos(name: &str, known: &str) -> Option<usize> {
    let typos = osa_distance(name, known);
    let (words, of_known) = (name.split('_'), known.split('_'));
    let are_words = words.clone().count() == of_known.clone().count()
        && words
            .zip(of_known)
            .all(|(word, known)| osa_distance(word, known) <= 1);
    (typos <= 1 || are_words).then_some(typos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_a_setting_is_misspelt() {
        for (name, known) in [
            ("OLD_PREFX", "OLD_PREFIX"),
            ("OLD_PERFIX", "OLD_PREFIX"),
            ("old_prefix", "OLD_PREFIX"),
            ("DESTINATION_BUKET_NAM", "DESTINATION_BUCKET_NAME"),
            ("MAX_CONCURENCY", "MAX_CONCURRENCY"),
            ("DATABASE_URI", "DATABASE_URL"),
            ("S3_FORCE_PATHSTYLE", "S3_FORCE_PATH_STYLE"),
        ] {
            let found = misspelt_names(format!("{name}=x\nexport {name}='y'\n").as_bytes());
            assert_eq!(found, [(name.to_owned(), known)].into(), "{name}");
        }
    }

    #[test]
    fn settings_of_either_program_and_names_of_others_are_not() {
        let samples = SAMPLES.concat().replace("\n#", "\n");
        for name in known_names() {
            assert!(samples.contains(&format!("\n{name}=")), "{name}");
        }
        for name in known_names().chain([
            "PATH",
            "SEED",
            "SSE2",
            "IMAGES",
            "S3_PORT",
            "STATUS_PORT",
            "FEEDER_OPTIONS",
            "PGSSLCERT",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_SQS",
            "AWS_ROLE_ARN",
            "SECRET_KEY_BASE",
            "NODE_ENV",
            "KEY_PREFIX",
            "IMAGE_SIZE",
            "DATABASE_PATH",
            "SQS_REGION",
            "RUN_DATE",
        ]) {
            assert_eq!(misspelt_names(format!("{name}=x\n").as_bytes()), [].into());
        }
    }
}
