use super::*;
use arrow_array::{ArrayRef, BinaryArray, Decimal128Array, Int64Array, StringArray, TimestampMillisecondArray};
use std::sync::Arc;

fn rows() -> RecordBatch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("a", Arc::new(Int64Array::from(vec![Some(1), None]))),
        ("s", Arc::new(StringArray::from(vec!["x, y", ""]))),
        ("t", Arc::new(TimestampMillisecondArray::from(vec![1_704_164_645_678, 0]))),
        ("d", Arc::new(Decimal128Array::from(vec![1050, -5]).with_precision_and_scale(10, 2).unwrap())),
        ("b", Arc::new(BinaryArray::from(vec![&[0u8, 255][..], &[][..]]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn writer(identifier: Option<&str>) -> PrintWriter {
    PrintWriter { options: PrintOptions { identifier: identifier.map(str::to_string), standard_error: false }, text: Vec::new() }
}

#[test]
fn rows_look_as_flink_prints_them() {
    let mut writer = writer(Some("out"));
    writer.write(&rows()).unwrap();
    let text = String::from_utf8(writer.text).unwrap();
    assert_eq!(text, "out> +I[1, x, y, 2024-01-02T03:04:05.678, 10.50, [0, -1]]\nout> +I[null, , 1970-01-01T00:00:00, -0.05, []]\n");
}

#[test]
fn an_epoch_is_printed_once_however_often_it_is_published() {
    struct Stubborn(Vec<u8>, bool);
    impl Write for Stubborn {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.0.extend_from_slice(&bytes[..1]);
            Ok(1)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut content = PrintContent { text: b"row\n".to_vec(), printed: 0, standard_error: false };
    let mut out = Stubborn(Vec::new(), false);
    let tries = (0..20).filter(|_| content.print_to(&mut out).is_ok()).count();
    assert!(tries > 1);
    assert_eq!(out.0, b"row\n");
}

#[test]
fn an_epoch_without_rows_has_no_content() {
    let mut writer = writer(None);
    assert!(writer.seal(Epoch(1)).is_none());
    writer.write(&rows()).unwrap();
    assert!(writer.bytes() > 0);
    assert!(writer.seal(Epoch(2)).is_some());
    assert_eq!(writer.bytes(), 0);
}
