import com.pixelmed.validate.DicomSRValidator;

/** Runs PixelMed's DicomSRValidator on many files in one JVM: its start costs ten times what a file costs. */
public class SrJudge {
    public static void main(String[] files) throws Exception {
        DicomSRValidator validator = new DicomSRValidator();
        for (String file : files) {
            System.out.println("== " + file);
            System.out.println(validator.validate(file, false, true, false, false, false));
        }
    }
}
