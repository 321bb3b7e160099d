//! Where an error arose, by the server's CONTEXT: a line for each function, statement or tuple, the innermost first.
//! Its words are in the language of `lc_messages`; the places of tuples, names and quotes are not.

/// What the line of a function or of its statement has in every language, and a worker's or our parameters' has not.
const FRAME_MARKS: [char; 6] = ['"', '(', '«', '»', '“', '”'];

/// The first of our parameters, as `log_parameter_max_length_on_error` has the server add them, in the last line.
const FIRST_PARAMETER: &str = "$1 = ";

/// Whether a function, above all a trigger's, or a foreign key raised it or ran into it, and not our statement.
pub(super) fn is_in_function(context: Option<&str>) -> bool {
    frames(context).any(|line| !names_tuple(line))
}

/// Whether a wait was for what only the application locks. Outside functions and tuples it was for the table
/// itself; the counters are ours, and two of our statements may meet there.
pub(super) fn is_application_lock(context: Option<&str>) -> bool {
    is_in_function(context)
        || frames(context).any(|line| names_tuple(line) && !names_counters(line))
}

fn frames(context: Option<&str>) -> impl Iterator<Item = &str> {
    let lines = context.unwrap_or_default().lines();
    lines
        .take_while(|line| !begins_parameters(line))
        .filter(|line| !is_words(line))
}

fn begins_parameters(line: &str) -> bool {
    let parts = line.split_once(FIRST_PARAMETER);
    parts.is_some_and(|(before, _)| is_words(before))
}

fn is_words(text: &str) -> bool {
    !text.contains(FRAME_MARKS)
}

/// Whether it has a tuple's place: `(block,number)`.
fn names_tuple(line: &str) -> bool {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    let brackets = line.split('(').skip(1);
    let mut places = brackets.filter_map(|rest| rest.split_once(')')?.0.split_once(','));
    places.any(|(block, number)| is_number(block) && is_number(number))
}

/// Whether it names the ledger's table of this name, whatever the quotes.
fn names_counters(line: &str) -> bool {
    let is_of_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.split(|letter| !is_of_name(letter))
        .any(|word| word == "counters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_known_in_every_language() {
        for context in [
            "PL/pgSQL function refuse() line 2 at RAISE",
            "PL/pgSQL-Funktion refuse() Zeile 2 bei RAISE",
            "fonction PL/pgSQL refuse(), ligne 2 à RAISE",
            "SQL関数\"refuse\"の行番号 1",
            "SQL-Funktion »refuse« Anweisung 1",
            "beim Aktualisieren von Tupel (0,5) in Relation »tallies«\nSQL-Anweisung »UPDATE tallies SET n=n+1«",
            "SQL statement \"SELECT 1 FROM ONLY \"public\".\"parents\" x WHERE \"id\" = $1 FOR KEY SHARE OF x\"",
            "PL/pgSQL function f() line 1 at RAISE\nunnamed portal with parameters: $1 = '{1}'",
        ] {
            assert!(is_in_function(Some(context)), "{context}");
            assert!(is_application_lock(Some(context)), "{context}");
        }
    }

    #[test]
    fn our_own_statements_are_no_functions() {
        for context in [
            "while updating tuple (0,7) in relation \"images\"",
            "beim Aktualisieren von Tupel (0,7) in Relation »images«",
            "リレーション\"images\"のタプル(0,7)の更新中",
            "parallel worker",
            "unnamed portal with parameters: $1 = '{\"(a\"}', $2 = '{\"f(1)\nb\"}'",
            "while updating tuple (0,7) in relation \"images\"\nportal sans nom avec paramètres : $1 = '{\"a\"}'",
        ] {
            assert!(!is_in_function(Some(context)), "{context}");
        }
        assert!(!is_in_function(None));
    }

    #[test]
    fn only_the_ledgers_counters_are_locked_by_us() {
        let of_application = [
            "while inserting index tuple (0,7) in relation \"images_path_key\"",
            "beim Aktualisieren von Tupel (0,7) in Relation »view_counters«",
            "while updating tuple (0,5) in relation \"counters\"\nSQL statement \"UPDATE counters SET n=n+1\"\nPL/pgSQL function f() line 1 at SQL statement",
            "beim Aktualisieren von Tupel (0,5) in Relation »counters«\nSQL-Anweisung »UPDATE counters SET n=n+1«\nPL/pgSQL-Funktion f() Zeile 1 bei SQL-Anweisung",
        ];
        for context in of_application {
            assert!(is_application_lock(Some(context)), "{context}");
        }
        for context in [
            "while updating tuple (0,7) in relation \"counters\"",
            "beim Aktualisieren von Tupel (0,7) in Relation »counters«",
            "pendant la mise à jour de la ligne (0,7) dans la relation « counters »",
            "unnamed portal with parameters: $1 = '{1}'",
        ] {
            assert!(!is_application_lock(Some(context)), "{context}");
        }
        assert!(!is_application_lock(None));
    }
}
